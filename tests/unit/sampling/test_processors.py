"""Logits processors: those of the engine see one batch that changes, those of requests harm nobody else."""

from __future__ import annotations

import random
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.config.engine_config import SamplingConfig
from octavo.core.params import ProcessorCall, SamplingParams
from octavo.errors import ConfigurationError, InvalidRequest
from octavo.sampling.engine_processors import EngineProcessors, difference
from octavo.sampling.processor_thread import Job, ProcessorThread
from octavo.sampling.processors import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
    load_classes,
    path_of,
    validate,
)
from octavo.sampling.request_processors import RequestProcessors, RowTokens, bind
from octavo.sampling.sampler import Sampler, SamplerOutput

VOCAB_SIZE = 40
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ---- a batch that changes ------------------------------------------------------------------------------------------


def tokens(name: int = 0) -> RowTokens:
    return RowTokens(SamplingParams(), [name], [])


def followed(state: dict[int, int], update: BatchUpdate, added_first: bool) -> None:
    """What processors do with an update, in the documented order or in that of vLLM's own."""

    def remove() -> None:
        for index in update.removed:
            state.pop(index, None)

    if not added_first:
        remove()
    for index, _, prompt, _ in update.added:
        assert prompt is not None
        state[index] = prompt[0]
    if added_first:
        remove()
    for source, target, kind in update.moved:
        moved, replaced = state.pop(source, None), state.pop(target, None)
        if moved is not None:
            state[target] = moved
        if kind is MoveDirectionality.SWAP and replaced is not None:
            state[source] = replaced


@pytest.mark.parametrize("added_first", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_updates_lead_from_each_batch_to_the_next(seed: int, added_first: bool) -> None:
    rng = random.Random(seed)
    rows = [tokens(i) for i in range(12)]
    before: list[RowTokens] = []
    state: dict[int, int] = {}
    for _ in range(200):
        after = list(before)
        if rng.random() < 0.8:
            after = [row for row in before if rng.random() < 0.8]
            for row in rng.sample(rows, rng.randrange(4)):
                if row not in after:
                    after.insert(rng.randrange(len(after) + 1), row)
            if rng.random() < 0.3:
                rng.shuffle(after)
        update = difference(before, after)
        if update is None:
            assert after == before
        else:
            assert update.batch_size == len(after)
            highest = max(len(before), len(after))
            indices = [i for i, *_ in update.added] + [i for one in update.moved for i in one[:2]] + [*update.removed]
            assert all(0 <= index < highest for index in indices)
            assert not set(update.removed) & {index for index, *_ in update.added}
            assert [one[2] for one in update.added] == [row.prompt_token_ids for i, row in added_rows(update, rows)]
            followed(state, update, added_first)
        assert [state.get(i) for i in range(len(after))] == [row.prompt_token_ids[0] for row in after]
        assert len(state) == len(after)
        before = after


def added_rows(update: BatchUpdate, rows: list[RowTokens]) -> list[tuple[int, RowTokens]]:
    by_output = {id(row.output_token_ids): row for row in rows}
    return [(index, by_output[id(output)]) for index, _, _, output in update.added]


def test_a_row_that_ends_costs_its_successors_a_move_each_and_nobody_else() -> None:
    rows = [tokens(i) for i in range(4)]
    update = difference(rows, [rows[0], *rows[2:]])
    way = MoveDirectionality.UNIDIRECTIONAL
    assert update == BatchUpdate(3, [1], [], [(2, 1, way), (3, 2, way)])
    assert difference(rows, list(rows)) is None
    new = tokens(9)
    update = difference(rows, [rows[0], new, *rows[2:]])
    assert update is not None and (list(update.removed), list(update.moved)) == ([], [])
    assert [(index, output is new.output_token_ids) for index, _, _, output in update.added] == [(1, True)]


class Recorder(LogitsProcessor):
    """Written as for vLLM. `extra_args={"only": N}`: no other token than N plus the number of tokens so far."""

    made: list[Recorder] = []  # noqa: RUF012

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        only = (sampling_params.extra_args or {}).get("only")
        if only is not None and not isinstance(only, int):
            raise ValueError(f"only must be a token id, got {only!r}")

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.config, self.device, self.is_pin_memory = vllm_config, device, is_pin_memory
        self.requests: dict[int, tuple[int, list[int]]] = {}
        self.updates: list[BatchUpdate | None] = []
        self.made.append(self)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        self.updates.append(batch_update)
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.requests.pop(index, None)
        for index, params, _, output in batch_update.added:
            self.requests.pop(index, None)
            if params.extra_args and "only" in params.extra_args:
                self.requests[index] = params.extra_args["only"], output
        for source, target, kind in batch_update.moved:
            moved, replaced = self.requests.pop(source, None), self.requests.pop(target, None)
            if moved is not None:
                self.requests[target] = moved
            if kind == MoveDirectionality.SWAP and replaced is not None:
                self.requests[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        for index, (only, output) in self.requests.items():
            if only == 13:
                raise ArithmeticError("thirteen")
            kept = logits[index, (only + len(output)) % VOCAB_SIZE].clone()
            logits[index] = -torch.inf
            logits[index, (only + len(output)) % VOCAB_SIZE] = kept
        return logits


class Rows:
    """A sampler that is told of each row's tokens as the runner tells it."""

    def __init__(self, *classes: type[LogitsProcessor], timeout: float = 5.0) -> None:
        processors = EngineProcessors(classes, "the config", CPU) if classes else None
        config = SamplingConfig(processor_timeout=timeout)
        self.sampler = Sampler(16, VOCAB_SIZE, "cpu", None, config, processors)
        self.outputs: dict[int, list[int]] = {}

    def add(self, row: int, output: tuple[int, ...] = (), **fields: Any) -> None:
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": None, **fields})
        self.sampler.add_row(row, params, row, [row, 7], list(output), frozenset())
        self.outputs[row] = list(output)

    def step(self, logits: Tensor, rows: list[int]) -> SamplerOutput:
        positions = torch.tensor([len(self.outputs[row]) for row in rows], dtype=torch.int64)
        output = self.sampler.sample(logits.clone(), torch.tensor(rows), rows, positions)
        for i, of_row in output.followed:
            of_row.output_token_ids.append(int(output.token_ids[i]))
        for i, row in enumerate(rows):
            self.outputs[row].append(int(output.token_ids[i]))
        return output


def test_any_rows_in_any_order_are_one_batch_to_a_processor() -> None:
    rng, rows = random.Random(3), Rows(Recorder)
    torch.manual_seed(3)
    only: dict[int, int | None] = {}
    for _ in range(120):
        for row in range(8):
            if rng.random() < 0.15:
                only[row] = rng.choice([None, rng.randrange(14, VOCAB_SIZE)])
                output = tuple(range(rng.randrange(3)))
                rows.add(row, output, extra_args=None if only[row] is None else {"only": only[row]})
        batch = [row for row in only if rng.random() < 0.8]
        if not batch:
            continue
        if rng.random() < 0.3:
            rng.shuffle(batch)
        lengths = [len(rows.outputs[row]) for row in batch]
        logits = torch.randn(len(batch), VOCAB_SIZE)
        chosen = rows.step(logits, batch).token_ids.tolist()
        for row, length, own, token_id in zip(batch, lengths, logits, chosen, strict=True):
            start = only[row]
            assert token_id == (int(own.argmax()) if start is None else (start + length) % VOCAB_SIZE)
    made = Recorder.made[-1]
    assert (made.config, made.device, made.is_pin_memory) == ("the config", CPU, False)


def test_a_batch_that_stays_is_no_update() -> None:
    rows = Rows(Recorder)
    for row in (0, 1):
        rows.add(row)
    for _ in range(3):
        rows.step(torch.zeros(2, VOCAB_SIZE), [0, 1])
    assert [update is None for update in Recorder.made[-1].updates] == [False, True, True]


def test_processors_that_have_raised_are_made_anew() -> None:
    rows = Rows(Recorder)
    rows.add(0, extra_args={"only": 20})
    rows.add(1)
    rows.step(torch.zeros(2, VOCAB_SIZE), [0, 1])
    first = Recorder.made[-1]
    rows.add(2, extra_args={"only": 13})
    with pytest.raises(RuntimeError, match="logits processor Recorder: ArithmeticError: thirteen"):
        rows.step(torch.zeros(3, VOCAB_SIZE), [2, 0, 1])
    rows.sampler.remove_row(2)
    assert rows.step(torch.zeros(2, VOCAB_SIZE), [0, 1]).token_ids.tolist() == [21, 0]
    assert Recorder.made[-1] is not first and len(Recorder.made[-1].updates) == 1


class TwiceTheLikeliestHalf(LogitsProcessor):
    """min_p of 0.5, of logits that are divided by the temperature already."""

    def __init__(self, config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.seen: list[Tensor] = []

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        return

    def apply(self, logits: Tensor) -> Tensor:
        chances = logits.softmax(-1)
        return logits.masked_fill(chances < 0.5 * chances.amax(-1, keepdim=True), -torch.inf)


@pytest.mark.parametrize("greedy_too", [False, True])
def test_what_leaves_the_likeliest_token_so_comes_after_the_temperature(greedy_too: bool) -> None:
    """It draws what min_p draws, and greedy rows are what they were."""
    torch.manual_seed(5)
    logits = (torch.randn(1, VOCAB_SIZE) * 0.5).expand(300, -1)
    drawn = []
    for rows, fields in ((Rows(TwiceTheLikeliestHalf), {}), (Rows(), {"min_p": 0.5})):
        rows.add(3, temperature=0.7, top_p=0.9, logprobs=1, logprobs_mode="processed_logprobs", **fields)
        rows.add(4, logprobs=1, logprobs_mode="processed_logits")
        batch = [3] * 299 + [4 if greedy_too else 3]
        output = rows.sampler.sample(logits.clone(), torch.tensor(batch), batch, torch.arange(300))
        values = {i: row.logprobs for block in output.logprobs for i, row in block.rows()}
        drawn.append((output.token_ids.tolist(), [values[i] for i in range(300)]))
    assert drawn[0][0] == drawn[1][0]
    np.testing.assert_allclose(drawn[0][1], drawn[1][1], atol=1e-5)
    assert len(set(drawn[0][0])) > 1


class Misshapen(TwiceTheLikeliestHalf):
    def is_argmax_invariant(self) -> bool:
        return False

    def apply(self, logits: Tensor) -> Tensor:
        return logits[:, :3]


def test_logits_of_another_shape_are_an_error() -> None:
    rows = Rows(Misshapen)
    rows.add(0)
    with pytest.raises(
        RuntimeError, match=r"Misshapen: ValueError: returned a tensor of shape \[1, 3\] and type float32"
    ):
        rows.step(torch.zeros(1, VOCAB_SIZE), [0])


# ---- found by name -------------------------------------------------------------------------------------------------


def test_classes_are_found_by_name_and_named_by_where_they_are() -> None:
    module = types.ModuleType("octavo_test_processors")
    module.Recorder = Recorder  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        assert load_classes(["octavo_test_processors:Recorder"]) == [Recorder]
        for path, message in (
            ("octavo_test_processors:Missing", "octavo_test_processors:Missing cannot be loaded: AttributeError"),
            ("octavo_no_such_module:X", "cannot be loaded: ModuleNotFoundError"),
            ("octavo_test_processors:number", "must be a subclass of octavo.LogitsProcessor"),
            ("builtins:dict", "must be a subclass of octavo.LogitsProcessor"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                load_classes([path])
    finally:
        del sys.modules[module.__name__]
    assert path_of("a:B") == "a:B"
    assert load_classes([path_of(Recorder)]) == [Recorder]

    class Local(Recorder):
        pass

    with pytest.raises(ConfigurationError, match="must be defined at the top of a module"):
        path_of(Local)


def test_a_class_refuses_parameters() -> None:
    validate([Recorder], SamplingParams(extra_args={"only": 3}))
    with pytest.raises(InvalidRequest, match="Recorder refuses the request: only must be a token id, got 'x'") as error:
        validate([Recorder], SamplingParams(extra_args={"only": "x"}))
    assert error.value.field == "extra_args"


# ---- of single requests --------------------------------------------------------------------------------------------


def plus(token_id: int, amount: float) -> Callable[[list[int], Tensor], Tensor]:
    def process(output: list[int], logits: Tensor) -> Tensor:
        logits[token_id] += amount
        return logits

    return process


def test_both_forms_in_their_order_with_all_tokens() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def double(prompt: list[int], output: list[int], logits: Tensor) -> Tensor:
        seen.append((list(prompt), list(output)))
        return logits * 2

    rows = Rows()
    rows.add(5, (3,), logits_processors=[double, plus(11, 3.0)])
    rows.add(2, logits_processors=[plus(12, 9.0)])
    rows.add(1)
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[:, 10] = 2.0  # doubled: 4, against 3
    assert rows.step(logits, [1, 5, 2]).token_ids.tolist() == [10, 10, 12]
    logits[:, 10] = 1.2
    assert rows.step(logits, [5, 2]).token_ids.tolist()[0] == 11
    assert seen == [([5, 7], [3]), ([5, 7], [3, 10])]


def test_they_come_after_biases_and_before_penalties() -> None:
    def log(output: list[int], logits: Tensor) -> Tensor:
        assert float(logits[4]) == 3.0
        logits[4] = 8.0
        return logits

    rows = Rows()
    rows.add(0, (4,), logits_processors=[log], logit_bias={4: 3.0}, presence_penalty=1.5, logprobs=0)
    rows.add(1)
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[0, 6] = 7.0
    output = rows.step(logits, [0, 1])
    assert output.token_ids.tolist() == [6, 0] and not output.refused  # 8 - 1.5 is less than 7
    ((_, found),) = output.logprobs[0].rows()
    assert found.logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[0, 6]), abs=1e-5)


def nothing(output: list[int], logits: Tensor) -> Any:
    logits[3] = 50.0


def raises(output: list[int], logits: Tensor) -> Tensor:
    logits[3] = 50.0
    raise LookupError("no such word")


def leaves(output: list[int], logits: Tensor) -> Tensor:
    raise SystemExit(3)


BAD: list[tuple[Callable[..., Any], str]] = [
    (raises, "its logits processor raises raised LookupError: no such word"),
    (leaves, "its logits processor leaves raised SystemExit: 3"),
    (nothing, "its logits processor nothing returned a NoneType, not logits of shape [40]"),
    (
        lambda output, logits: logits[None],
        "returned a tensor of shape [1, 40] and type float32, not logits of shape [40]",
    ),
    (lambda output, logits: logits > 0, "returned a tensor of shape [40] and type bool, not logits of shape [40]"),
    (lambda output, logits: logits.tolist(), "returned a list, not logits of shape [40]"),
]


@pytest.mark.parametrize(("processor", "message"), BAD)
@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0, "top_k": 9}])
def test_one_that_fails_is_told_and_harms_nobody(processor: Any, message: str, fields: dict[str, Any]) -> None:
    torch.manual_seed(6)
    logits = torch.randn(4, VOCAB_SIZE)
    rows = Rows()
    for row in range(4):
        own = {1: [processor], 2: [plus(8, 3.0)]}.get(row)
        rows.add(row, logits_processors=own, **fields)
    output = rows.step(logits, [0, 1, 2, 3])
    assert list(output.refused) == [1] and message in output.refused[1]
    alone = Rows()
    for row in (0, 2, 3):
        alone.add(row, logits_processors=[plus(8, 3.0)] if row == 2 else None, **fields)
    chosen = alone.step(logits[[0, 2, 3]], [0, 2, 3]).token_ids.tolist()
    assert output.token_ids[[0, 2, 3]].tolist() == chosen
    assert rows.step(logits, [0, 1, 2, 3]).refused == {}, "told once, and never asked again"


def test_other_floating_types_are_welcome() -> None:
    rows = Rows()
    rows.add(0, logits_processors=[lambda output, logits: logits.double() * 2])
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 9] = 1.0
    output = rows.step(logits, [0])
    assert (output.token_ids.tolist(), output.refused, output.greatest.tolist()) == ([9], {}, [2.0])


def test_nan_is_seen_in_its_row_alone() -> None:
    rows = Rows()
    rows.add(0)
    rows.add(1, logits_processors=[lambda output, logits: logits * torch.nan])
    rows.add(2, logits_processors=[lambda output, logits: logits - torch.inf])
    output = rows.step(torch.zeros(3, VOCAB_SIZE), [0, 1, 2])
    assert output.nan.tolist() == [False, True, True] and output.greatest[2] == -torch.inf
    assert int(output.token_ids[0]) == 0


def test_without_processors_no_thread_and_no_copies() -> None:
    rows = Rows()
    rows.add(0)
    output = rows.step(torch.zeros(1, VOCAB_SIZE), [0])
    assert rows.sampler._thread._worker is None and rows.sampler._tokens == {} and output.followed == []
    rows.add(1, logits_processors=[plus(1, 1.0)])
    rows.step(torch.zeros(2, VOCAB_SIZE), [0, 1])
    worker = rows.sampler._thread._worker
    assert worker is not None and worker.thread.is_alive()
    del rows
    worker.thread.join(5)
    assert not worker.thread.is_alive(), "it ends with its owner"


# ---- time ----------------------------------------------------------------------------------------------------------


def sleeps(seconds: float) -> Callable[[list[int], Tensor], Tensor]:
    def process(output: list[int], logits: Tensor) -> Tensor:
        time.sleep(seconds)
        return logits.fill_(9.0)

    return process


def job(*processors: Any) -> Job:
    own = [bind(processor, i) for i, processor in enumerate(processors)]
    return Job(RowTokens(SamplingParams(), [1], [2], own), torch.zeros(VOCAB_SIZE))


def test_the_one_that_hangs_ends_and_the_rest_go_on_with_another_thread() -> None:
    thread = ProcessorThread(0.3, CPU)
    jobs = [job(plus(1, 1.0)), job(sleeps(1.5)), job(plus(2, 2.0)), job(plus(3, 3.0))]
    before = time.perf_counter()
    thread.run(jobs)
    assert time.perf_counter() - before < 1.2
    assert [one.error is None for one in jobs] == [True, False, True, True]
    assert "were not done" in (jobs[1].error or "") and "0.3 s (logits_processor_timeout)" in (jobs[1].error or "")
    assert [float(jobs[i].logits[i]) for i in (2, 3)] == [2.0, 3.0]
    again = [job(plus(4, 4.0))]
    thread.run(again)
    assert float(again[0].logits[4]) == 4.0


def test_endless_python_code_is_interrupted() -> None:
    """Or it would take its share of the interpreter from everybody for ever."""

    def spins(output: list[int], logits: Tensor) -> Tensor:
        while True:
            pass

    thread = ProcessorThread(0.2, CPU)
    thread.run([job(plus(1, 1.0))])
    worker = thread._worker
    assert worker is not None
    jobs = [job(spins), job(plus(2, 2.0))]
    thread.run(jobs)
    assert jobs[0].error is not None and jobs[1].error is None and float(jobs[1].logits[2]) == 2.0
    worker.thread.join(10)
    assert not worker.thread.is_alive() and thread._worker is not worker


def test_who_has_taken_the_most_ends_not_who_comes_last() -> None:
    thread = ProcessorThread(0.5, CPU)
    jobs = [job(sleeps(0.4)), *(job(sleeps(0.05)) for _ in range(6))]
    thread.run(jobs)
    assert [one.error is None for one in jobs] == [False] + [True] * 6
    assert "took 0.4" in (jobs[0].error or "") and "were not done" not in (jobs[0].error or "")


def test_no_limit() -> None:
    thread = ProcessorThread(0.0, CPU)
    jobs = [job(sleeps(0.05))]
    thread.run(jobs)
    assert jobs[0].error is None and float(jobs[0].logits[0]) == 9.0


def test_one_that_comes_back_late_changes_nothing() -> None:
    rows = Rows(timeout=0.2)
    back = threading.Event()

    def late(output: list[int], logits: Tensor) -> Tensor:
        try:
            time.sleep(0.5)
        finally:
            logits[3] = 99.0
            back.set()
        return logits

    rows.add(0, logits_processors=[late])
    rows.add(1)
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, 5] = 1.0
    output = rows.step(logits, [0, 1])
    kept = output.greatest.clone()
    assert list(output.refused) == [0] and output.token_ids.tolist() == [5, 5]
    assert back.wait(5)
    assert torch.equal(output.greatest, kept)
    assert rows.step(logits, [0, 1]).token_ids.tolist() == [5, 5]


# ---- registered by name --------------------------------------------------------------------------------------------


def only(token_ids: list[int]) -> Callable[[list[int], Tensor], Tensor]:
    """A factory, as an operator registers it."""
    if not token_ids:
        raise ValueError("token_ids must not be empty")

    def process(output: list[int], logits: Tensor) -> Tensor:
        kept = torch.full_like(logits, -torch.inf)
        kept[token_ids] = logits[token_ids]
        return kept

    return process


def number() -> int:
    return 3


def registered() -> RequestProcessors:
    return RequestProcessors({"only": f"{__name__}:only", "number": f"{__name__}:number"})


def test_a_named_one_is_made_with_its_arguments() -> None:
    call = ProcessorCall("only", {"token_ids": [9, 4]})
    params = registered().bind(SamplingParams(temperature=0.0, logits_processors=[call, plus(4, 1.0)]))
    assert [processor.name for processor in params.logits_processors or ()] == ["only", "plus.<locals>.process"]
    rows = Rows()
    rows.sampler.add_row(0, params, 0, [1], [], frozenset())
    rows.outputs[0] = []
    assert rows.step(torch.zeros(1, VOCAB_SIZE), [0]).token_ids.tolist() == [4]
    plain = SamplingParams()
    assert registered().bind(plain) is plain


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (ProcessorCall("often"), r"logits_processors\[0\]: there is no logits processor 'often'; registered are: only"),
        (ProcessorCall("only"), r"only refuses its arguments \(\): TypeError: .*token_ids"),
        (ProcessorCall("only", {"ids": [1]}), r"only refuses its arguments \(ids=\[1\]\): TypeError"),
        (ProcessorCall("only", {"token_ids": []}), "ValueError: token_ids must not be empty"),
        (ProcessorCall("number"), "number must be callable with"),
        (lambda logits: logits, "must be callable with .output_token_ids, logits. or .prompt_token_ids"),
        (lambda a, b, c, d: a, "must be callable with"),
    ],
)
def test_one_that_cannot_be_had(processor: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as error:
        registered().bind(SamplingParams(logits_processors=[processor]))
    assert error.value.field == "logits_processors"


def test_nothing_registered() -> None:
    with pytest.raises(InvalidRequest, match="registered are: none"):
        RequestProcessors().bind(SamplingParams(logits_processors=[ProcessorCall("only")]))
    with pytest.raises(ConfigurationError, match="request_logits_processors: nowhere:x cannot be loaded"):
        RequestProcessors({"x": "nowhere:x"})


def test_optional_parameters_are_not_the_prompt() -> None:
    def scaled(output: list[int], logits: Tensor, by: float = 2.0) -> Tensor:
        return logits * by

    class Callable3:
        def __call__(self, prompt: list[int], output: list[int], logits: Tensor) -> Tensor:
            return logits

    assert not bind(scaled, 0).takes_prompt and bind(Callable3(), 0).takes_prompt
    assert not bind(lambda *args: args[-1], 0).takes_prompt
