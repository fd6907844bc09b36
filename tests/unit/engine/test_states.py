"""Recurrent states: where checkpoints are kept, and what later requests find of them."""

from __future__ import annotations

import pytest

from octavo.cache.block import KEPT
from octavo.cache.retention import ANSWER, BRANCH, PROMPT, KeepAll, KeepLatest
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.engine.engine_core import EngineCore
from tests.simulation import check_books, check_nothing_leaked, expected_output, make_engine, run, submit

STATE = ((4096, KeepLatest()),)
HYBRID = ((64_000, KeepLatest()), (64, KeepAll()))


def finish(engine: EngineCore, request_id: str, prompt: list[int], max_tokens: int) -> tuple[list[int], int]:
    """Output and cached tokens of one request."""
    params = SamplingParams(max_tokens=max_tokens)
    engine.add(Submit(request_id, prompt, params, 0.0))
    tokens: list[int] = []
    cached = -1
    while engine.has_work():
        for delta in engine.step().deltas:
            tokens += delta.token_ids
            cached = delta.num_cached_tokens
        check_books(engine)
    return tokens, cached


@pytest.mark.parametrize("pages", [STATE, HYBRID], ids=["state", "hybrid"])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_next_turn_of_a_chat_finds_the_answer_too(pages, depth):
    engine = make_engine(pages=pages, depth=depth, num_slabs=40)
    history: list[int] = []
    for turn in range(5):
        history += [(turn + i) % 49 + 1 for i in range(30)]
        known = len(history) - 30
        output, cached = finish(engine, str(turn), list(history), max_tokens=25)
        # computed at the end of the last turn: everything but its last token
        assert cached == (known - 1) // 16 * 16 if turn else cached == 0
        history += output
    check_nothing_leaked(engine)


@pytest.mark.parametrize("pages", [STATE, HYBRID], ids=["state", "hybrid"])
def test_a_burst_with_one_new_prefix_computes_it_once(pages):
    """The first learns from those behind it where their prompts branch, and keeps its state there."""
    prefix = [i % 49 + 1 for i in range(512)]
    engine = make_engine(pages=pages, budget=2048, max_rows=64, num_slabs=400)
    prompts = [[*prefix, i % 49 + 1, i // 49 + 1] for i in range(64)]
    for i, prompt in enumerate(prompts):
        submit(engine, str(i), prompt, max_tokens=1)
    outputs = run(engine)
    assert all(outputs[str(i)] == expected_output(prompt, 1) for i, prompt in enumerate(prompts))
    assert sum(engine.executor.computed_tokens) == 512 + 64 * 2


def test_the_second_visitor_shows_where_prompts_branch_and_the_third_gains():
    engine = make_engine(pages=STATE)
    system = [i % 48 + 1 for i in range(100)]
    cached = [finish(engine, str(i), [*system, *[i + 1] * 60], max_tokens=1)[1] for i in range(4)]
    assert cached == [0, 0, 96, 96]


def kinds(engine: EngineCore) -> list[tuple[str, int]]:
    """Why each checkpoint was kept, and its rank."""
    index = engine.scheduler.cache.index
    return sorted((index.annotation(block, "kind"), block.rank) for block in index.all_blocks())


@pytest.mark.parametrize("keeps_answers", [True, False])
def test_of_a_chat_that_goes_on_one_checkpoint_stays_beside_those_where_others_branch(keeps_answers):
    """The one at the end of the answer, or of the prompt where clients drop answers (reasoning, for one)."""
    engine = make_engine(pages=STATE)
    system = [i % 48 + 1 for i in range(64)]
    for i in range(2):
        finish(engine, str(i), [*system, *[i + 1] * 30], max_tokens=1)
    history = [*system, *[5] * 30]
    for turn in range(4):
        output, cached = finish(engine, "chat", list(history), max_tokens=40)
        assert cached >= 64
        history += [*(output if keeps_answers else []), *[turn + 6] * 30]
    kept = [kind for kind, rank in kinds(engine) if rank == KEPT]
    assert kept.count(ANSWER if keeps_answers else PROMPT) == (1 if keeps_answers else 3)
    assert kept.count(PROMPT if keeps_answers else ANSWER) == (2 if keeps_answers else 1)  # the first could not know
    assert kept.count(BRANCH) == 1


def test_the_same_prompt_again_is_found_however_often():
    engine = make_engine(pages=STATE, num_slabs=5)
    prompt = [i % 48 + 1 for i in range(100)]
    cached = [finish(engine, str(i), prompt, max_tokens=30)[1] for i in range(5)]
    assert cached == [0, 96, 96, 96, 96]


def test_a_long_prompt_leaves_checkpoints_on_its_way():
    engine = make_engine(pages=((64, KeepLatest(4, 8)),), budget=1000, max_model_len=1000)
    long = [i % 48 + 1 for i in range(800)]
    finish(engine, "long", long, max_tokens=1)
    assert finish(engine, "cut", long[:500], max_tokens=1)[1] == 7 * 4 * 16  # 50 blocks, 8 checkpoints: every 7


def test_a_prompt_is_cut_where_its_state_is_kept_and_nowhere_else():
    engine = make_engine(pages=STATE, budget=512)
    finish(engine, "a", [i % 48 + 1 for i in range(200)], max_tokens=1)
    assert [plan.total_tokens for plan in engine.executor.plans] == [192, 8]


def test_a_preempted_prompt_resumes_from_its_last_border():
    engine = make_engine(pages=STATE, budget=64)
    submit(engine, "a", [i % 48 + 1 for i in range(300)], max_tokens=20)
    for _ in range(3):
        engine.step()
    engine.scheduler.preempt_all()
    outputs = run(engine)
    assert outputs["a"] == expected_output([i % 48 + 1 for i in range(300)], 20)
    computed = sum(plan.total_tokens for plan in engine.executor.plans)
    assert computed == 300 + len(outputs["a"]) - 1


def test_without_caching_nothing_is_copied():
    engine = make_engine(pages=STATE, caching=False)
    finish(engine, "a", [5] * 100, max_tokens=40)
    assert not any(plan.page_copies for plan in engine.executor.plans)


@pytest.mark.parametrize("pages", [STATE, HYBRID], ids=["state", "hybrid"])
def test_drafts_roll_back_to_the_mark(pages):
    """What speculation will do: mark, compute guesses, keep some of them."""
    engine = make_engine(pages=pages)
    scheduler, device = engine.scheduler, engine.executor
    prompt = [i % 48 + 1 for i in range(40)]
    submit(engine, "a", prompt, max_tokens=30)
    engine.step()
    engine.step()
    engine.step()
    request = scheduler.requests["a"]
    row = device.rows["a"]
    assert scheduler.cache.mark(request)
    known = len(request.token_ids)
    for guess in (7, 8, 9):  # the device computes guesses that will be refused
        request.token_ids.append(guess)
        row.token_ids.append(guess)
    request.num_expected_tokens += 3
    plan = scheduler.schedule()
    device.run(plan)
    del request.token_ids[known:], row.token_ids[known:]
    request.num_expected_tokens = known
    before = request.num_computed_tokens
    scheduler.cache.rollback(request, known - 1)
    assert request.num_computed_tokens < before
    row.num_computed = request.num_computed_tokens
    scheduler._planned.pop(plan.step_id)
    outputs = run(engine)
    assert outputs["a"][-10:] == expected_output(prompt, 30)[-10:]
    assert not device.violations


def test_attention_blocks_stay_at_16_tokens_beside_a_state_1000_times_larger():
    engine = make_engine(pages=HYBRID, num_slabs=10)
    assert engine.scheduler.cache.block_size == 16
    assert engine.scheduler.cache.pool.blocks_per_slab == (1, 1000)
    prompt = [i % 48 + 1 for i in range(50)]
    finish(engine, "a", prompt, max_tokens=1)
    assert finish(engine, "b", prompt, max_tokens=1)[1] == 48


def test_a_cache_of_two_pages_serves_everybody():
    engine = make_engine(pages=STATE, num_slabs=2, max_rows=4)
    prompts = [[*[3] * 40, i] for i in range(1, 6)]
    for i, prompt in enumerate(prompts):
        submit(engine, str(i), prompt, max_tokens=20)
    outputs = run(engine)
    assert all(outputs[str(i)] == expected_output(prompt, 20) for i, prompt in enumerate(prompts))
