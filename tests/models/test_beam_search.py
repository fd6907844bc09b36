"""Beam search finds the sequences that transformers finds, with their scores, whatever else the engine does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers

from octavo.core.params import BeamSearchParams, SamplingParams
from octavo.errors import InvalidRequest
from octavo.llm import LLM
from tests.models.harness import randomise, save
from tests.models.test_logits import VARIANTS, VOCAB, config_of

EOS = (7, 11)  # two of many, so that beams end at different lengths


@pytest.fixture(scope="module", params=["llama", "bamba"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    family, config = VARIANTS[request.param][0], config_of(request.param)
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    randomise(model, seed=3)
    return save(model, tmp_path_factory.mktemp(request.param)), model


def prompts_of(count: int) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(VOCAB) for _ in range(rng.choice([3, 17, 40]))] for _ in range(count)]


def llm_for(folder: Path, **options: object) -> LLM:
    return LLM(
        str(folder), dtype="float32", max_model_len=128, threads=1, skip_tokenizer_init=True, hf_overrides={},
        max_logprobs=-1, num_gpu_blocks_override=400, **options,
    )  # fmt: skip


def reference(model: object, prompt: list[int], **settings: object) -> list[tuple[list[int], float]]:
    with torch.inference_mode():
        found = model.generate(  # type: ignore[attr-defined]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            eos_token_id=list(EOS),
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
    results = []
    for row, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
        tokens = row[len(prompt) :]
        ends = [i for i, token_id in enumerate(tokens) if token_id in EOS]
        results.append((tokens[: ends[0] + 1] if ends else tokens, score))
    return results


@pytest.mark.parametrize(
    ("width", "n", "length_penalty", "early_stopping"),
    [
        (2, 1, 1.0, False),
        (4, 4, 1.0, False),
        (3, 2, 0.0, True),
        (4, 4, -1.0, False),
        (1, 1, 1.0, False),
    ],
)
def test_the_sequences_of_transformers(
    pair: tuple[Path, object], width: int, n: int, length_penalty: float, early_stopping: bool
) -> None:
    folder, model = pair
    llm = llm_for(folder, enable_prefix_caching=width != 3)
    prompts = prompts_of(3)
    params = SamplingParams(
        n=n, best_of=width, use_beam_search=True, temperature=0, max_tokens=9, stop_token_ids=list(EOS),
        ignore_eos=True, length_penalty=length_penalty, early_stopping=early_stopping,
    )  # fmt: skip
    outputs = llm.generate(prompts, params, use_tqdm=False)
    num_stopped = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = reference(
            model, prompt, num_beams=width, num_return_sequences=n, max_new_tokens=9,
            length_penalty=length_penalty, early_stopping=early_stopping,
        ) if width > 1 else None  # fmt: skip
        found = [
            (one.token_ids, (one.cumulative_logprob or 0.0) / len(one.token_ids) ** length_penalty)
            for one in output.outputs
        ]
        assert [one.index for one in output.outputs] == list(range(n))
        num_stopped += sum(one.finish_reason == "stop" for one in output.outputs)
        for one in output.outputs:
            assert (one.finish_reason == "stop") == (one.token_ids[-1] in EOS) == (one.stop_reason in EOS)
        if expected is None:  # one beam is greedy search
            plain = llm.generate(
                [prompt],
                SamplingParams(temperature=0, max_tokens=9, stop_token_ids=list(EOS), ignore_eos=True),
                use_tqdm=False,
            )
            assert output.outputs[0].token_ids == plain[0].outputs[0].token_ids
            continue
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)
    assert llm.frontend.client.stats().num_used_blocks == 0
    llm.shutdown()


def test_neighbours_preemption_and_chunks_change_nothing(pair: tuple[Path, object]) -> None:
    folder, model = pair
    prompt, others = prompts_of(4)[0], prompts_of(4)[1:]
    expected = reference(model, prompt, num_beams=4, num_return_sequences=4, max_new_tokens=9)
    plain = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    beams = SamplingParams(
        n=4, use_beam_search=True, temperature=0, max_tokens=9, stop_token_ids=list(EOS), ignore_eos=True
    )
    llm = llm_for(folder, max_num_batched_tokens=16, max_num_seqs=6)
    alone = [llm.generate([one], plain, use_tqdm=False)[0].outputs[0].token_ids for one in others]
    core = llm.frontend.client.core  # type: ignore[attr-defined]
    step, count = core.step, 0

    def preempting_step() -> object:
        nonlocal count
        count += 1
        if count % 5 == 0:
            core.scheduler.preempt_all()
        return step()

    core.step = preempting_step
    outputs = llm.generate([prompt, *others], [beams, plain, plain, plain], use_tqdm=False)
    assert [one.token_ids for one in outputs[0].outputs] == [tokens for tokens, _ in expected]
    assert [output.outputs[0].token_ids for output in outputs[1:]] == alone
    llm.shutdown()


def test_logprobs_and_the_vllm_form(pair: tuple[Path, object]) -> None:
    folder, _ = pair
    llm = llm_for(folder)
    prompt = prompts_of(1)[0]
    params = SamplingParams(
        n=2, use_beam_search=True, temperature=0, max_tokens=5, ignore_eos=True, logprobs=2, stop_token_ids=list(EOS)
    )
    for one in llm.generate([prompt], params, use_tqdm=False)[0].outputs:
        assert one.logprobs is not None and len(one.logprobs) == len(one.token_ids)
        total = 0.0
        for token_id, position in zip(one.token_ids, one.logprobs, strict=True):
            assert token_id in position and len(position) in (2, 3)
            total += position[token_id].logprob
        assert total == pytest.approx(one.cumulative_logprob, abs=1e-5)
    (found,) = llm.beam_search([prompt], BeamSearchParams(beam_width=2, max_tokens=5, ignore_eos=True))
    assert [sequence.tokens[: len(prompt)] for sequence in found.sequences] == [prompt] * 2
    assert found.sequences[0].cum_logprob >= found.sequences[1].cum_logprob
    with pytest.raises(InvalidRequest, match="beam_width must be at least 1"):
        llm.beam_search([prompt], BeamSearchParams(beam_width=0, max_tokens=5))
    llm.shutdown()
