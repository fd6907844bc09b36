"""Logits processors through the whole engine: each sees every token before, at any depth, and one that fails ends its
own request alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.config.options import Options
from octavo.core.messages import Submit
from octavo.core.params import ProcessorCall, RequestOutputKind, SamplingParams
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.configure import configure
from octavo.engine.process_client import ProcessClient
from octavo.errors import ConfigurationError, InvalidRequest, RequestFailed
from octavo.llm import LLM
from octavo.sampling.processors import BatchUpdate, LogitsProcessor, MoveDirectionality
from tests.models.test_logits import VOCAB
from tests.models.test_sampling_features import PROMPTS, WAYS, Checkpoint, checkpoint, make_engine, params, run

__all__ = ["checkpoint"]
HERE = __name__


# ---- of the engine


class Steps(LogitsProcessor):
    """Written as for vLLM. A request with `extra_args={"first": N}` says N, N + K, N + 2 K, ... with K the length of
    its prompt; one with `raises` raises when it has so many tokens."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        first = (sampling_params.extra_args or {}).get("first", 0)
        if not isinstance(first, int):
            raise ValueError(f"first must be a token id, got {first!r}")

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.requests: dict[int, tuple[dict[str, int], int, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.requests.pop(index, None)
        for index, own, prompt, output in batch_update.added:
            assert prompt is not None
            self.requests[index] = own.extra_args or {}, len(prompt), output
        for source, target, kind in batch_update.moved:
            moved, replaced = self.requests.pop(source), self.requests.pop(target, None)
            self.requests[target] = moved
            if kind == MoveDirectionality.SWAP:
                assert replaced is not None
                self.requests[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        assert sorted(self.requests) == list(range(len(logits)))
        for index, (own, step, output) in self.requests.items():
            if "first" in own:
                logits[index, (own["first"] + step * len(output)) % VOCAB] = 1e4
            if own.get("raises", -1) == len(output):
                raise ArithmeticError("as asked")
        return logits


@pytest.mark.parametrize(("depth", "preempt_every"), WAYS)
def test_one_of_the_engine_knows_every_row_of_every_batch(
    checkpoint: Checkpoint, depth: int, preempt_every: int
) -> None:
    """Rows of many lengths come and go in chunks of few tokens; those without arguments are left alone."""
    requests, wanted = {}, {}
    for i in range(12):
        prompt, num_tokens = PROMPTS[i % 4] + [i], 3 + i
        own = None if i % 3 == 0 else {"first": i}
        requests[str(i)] = prompt, params(max_tokens=num_tokens, extra_args=own)
        wanted[str(i)] = [(i + len(prompt) * n) % VOCAB for n in range(num_tokens)] if own else None
    plain = {name: (prompt, params(max_tokens=own.max_tokens)) for name, (prompt, own) in requests.items()}
    expected = run(make_engine(checkpoint), plain)
    engine = make_engine(checkpoint, depth, logits_processors=[f"{HERE}:Steps"], max_num_batched_tokens=24)
    for name, outcome in run(engine, requests, preempt_every).items():
        assert outcome.error is None
        assert outcome.token_ids == (wanted[name] or expected[name].token_ids), name


@pytest.mark.parametrize("depth", [1, 2])
def test_one_of_the_engine_that_raises_for_a_request_ends_that_one(checkpoint: Checkpoint, depth: int) -> None:
    requests = {str(i): (PROMPTS[i % 4] + [i], params(extra_args={"first": i} if i % 2 else None)) for i in range(8)}
    engine = make_engine(checkpoint, depth, logits_processors=[f"{HERE}:Steps"])
    expected = run(engine, requests)
    guilty = PROMPTS[1], params(extra_args={"raises": 5})
    outcomes = run(engine, {**dict(list(requests.items())[:5]), "guilty": guilty, **dict(list(requests.items())[5:])})
    error = outcomes.pop("guilty").error
    assert error is not None and "logits processor Steps: ArithmeticError: as asked" in error
    assert outcomes == expected
    assert run(engine, requests) == expected, "the engine is not what it was before"


# ---- of single requests


class Follows:
    """Checks that it is given all tokens so far, each time one more than the last, or again as many."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, prompt: list[int], output: list[int], logits: Tensor) -> Tensor:
        self.seen.append([*prompt, *output])
        logits[(sum(output) + 31 * len(output)) % VOCAB] += 2.0  # depends on all of them
        return logits


@pytest.mark.parametrize(("depth", "preempt_every"), WAYS)
def test_one_of_a_request_sees_all_tokens_before(checkpoint: Checkpoint, depth: int, preempt_every: int) -> None:
    def requests(processors: list[Follows]) -> dict[str, tuple[list[int], SamplingParams]]:
        mixed = {str(i): (PROMPTS[i], params(logits_processors=[processors[i]])) for i in range(4)}
        drawn = params(temperature=0.9, logits_processors=[processors[4]])
        return {**mixed, "drawn": (PROMPTS[0], drawn), "plain": (PROMPTS[1], params())}

    expected = run(make_engine(checkpoint), requests([Follows() for _ in range(5)]))
    processors = [Follows() for _ in range(5)]
    engine = make_engine(checkpoint, depth, max_num_batched_tokens=16)
    outcomes = run(engine, requests(processors), preempt_every)
    assert outcomes == expected
    assert len({tuple(outcome.token_ids) for outcome in outcomes.values()}) == 6
    for i, name in enumerate(["0", "1", "2", "3", "drawn"]):
        whole = PROMPTS[i % 4] + outcomes[name].token_ids
        num_prompt = len(PROMPTS[i % 4])
        lengths = [len(seen) for seen in processors[i].seen]
        assert set(lengths) >= set(range(num_prompt, len(whole)))
        assert all(seen == whole[: len(seen)] for seen in processors[i].seen), name


def _raises(output: list[int], logits: Tensor) -> Tensor:
    if len(output) == 4:
        raise LookupError("at the fifth")
    return logits


def _hangs(output: list[int], logits: Tensor) -> Tensor:
    if len(output) == 4:
        time.sleep(1.0)
    return logits


def _shortens(output: list[int], logits: Tensor) -> Tensor:
    return logits[:-1] if len(output) == 4 else logits


def _spoils(output: list[int], logits: Tensor) -> Tensor:
    return logits.fill_(torch.nan) if len(output) == 4 else logits


def _empties(output: list[int], logits: Tensor) -> Tensor:
    return logits.fill_(-torch.inf) if len(output) == 4 else logits


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (_raises, "its logits processor _raises raised LookupError: at the fifth"),
        (_hangs, "those of a whole step may take 0.3 s (logits_processor_timeout)"),
        (_shortens, f"_shortens returned a tensor of shape [{VOCAB - 1}] and type float32"),
        (_spoils, "its logits processors made logits that are not finite"),
        (_empties, "no token is left"),
    ],
)
def test_only_the_request_of_one_that_fails_ends(
    checkpoint: Checkpoint, processor: Callable[..., Any], message: str, depth: int
) -> None:
    """At once: nobody is tried apart, no step runs twice."""

    def others() -> dict[str, tuple[list[int], SamplingParams]]:
        return {
            str(i): (
                PROMPTS[i % 4] + [i],
                params(temperature=i % 2 * 0.8, logits_processors=[Follows()] if i % 3 == 0 else None),
            )
            for i in range(9)
        }

    engine = make_engine(checkpoint, depth, logits_processor_timeout=0.3)
    expected = run(engine, others())
    last_step = engine.scheduler.next_step_id
    requests = list(others().items())
    guilty = PROMPTS[2], params(logits_processors=[processor])
    started = time.perf_counter()
    outcomes = run(engine, {**dict(requests[:4]), "guilty": guilty, **dict(requests[4:])})
    assert time.perf_counter() - started < 5
    ended = outcomes.pop("guilty")
    assert message in (ended.error or "") and len(ended.token_ids) == 4
    assert outcomes == expected
    # as many steps as the neighbours' tokens need, with what chunks of their prompts take
    assert engine.scheduler.next_step_id - last_step <= last_step + 4
    assert not engine._quarantine


def only(token_ids: list[int]) -> Callable[[list[int], Tensor], Tensor]:
    def process(output: list[int], logits: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).index_copy_(0, torch.tensor(token_ids), logits[token_ids])

    return process


def settings(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "model": str(checkpoint.folder), "dtype": "float32", "max_model_len": 128, "threads": 1,
        "skip_tokenizer_init": True, "num_gpu_blocks_override": 100, "max_num_seqs": 8,
    }  # fmt: skip


def test_through_llm_and_the_async_engine(checkpoint: Checkpoint) -> None:
    def force(output: list[int], logits: Tensor) -> Tensor:
        logits[50 + len(output)] = 1e4
        return logits

    own = params(logits_processors=[force], max_tokens=4)
    named = params(logits_processors=[ProcessorCall("only", {"token_ids": [11, 12]})], max_tokens=6, n=1)
    options = {**settings(checkpoint), "request_logits_processors": [f"only={HERE}:only"]}
    with LLM(**options, logits_processors=[Steps]) as llm:
        everywhere = params(extra_args={"first": 3}, max_tokens=3)
        outputs = llm.generate([PROMPTS[0]] * 3, [own, named, everywhere], use_tqdm=False)
        assert outputs[0].outputs[0].token_ids == [50, 51, 52, 53]
        assert set(outputs[1].outputs[0].token_ids) <= {11, 12}
        step = len(PROMPTS[0])
        assert outputs[2].outputs[0].token_ids == [3, 3 + step, 3 + 2 * step]
        for bad, message in (
            (params(extra_args={"first": "x"}), "Steps refuses the request: first must be a token id, got 'x'"),
            (params(logits_processors=[ProcessorCall("never")]), "there is no logits processor 'never'"),
            (params(logits_processors=[ProcessorCall("only", {"x": 1})]), "only refuses its arguments"),
        ):
            with pytest.raises(InvalidRequest, match=message):
                llm.generate([PROMPTS[0]] * 2, [own, bad], use_tqdm=False)
        failed = llm.generate([PROMPTS[0]], params(logits_processors=[_raises]), use_tqdm=False)[0]
        assert failed.outputs[0].finish_reason == "error" and "at the fifth" in (failed.error or "")

    async def ask(engine: AsyncEngine, own: SamplingParams) -> list[int]:
        token_ids: list[int] = []
        async for output in engine.generate(PROMPTS[0], own):
            token_ids += output.outputs[0].token_ids
        return token_ids

    async def main() -> None:
        engine = AsyncEngine(**options)
        try:
            delta = params(logits_processors=[force], max_tokens=4, output_kind=RequestOutputKind.DELTA)
            assert await ask(engine, delta) == [50, 51, 52, 53]
            with pytest.raises(InvalidRequest, match="there is no logits processor 'never'"):
                await ask(engine, params(logits_processors=[ProcessorCall("never")]))
            with pytest.raises(RequestFailed, match="at the fifth"):
                await ask(engine, params(logits_processors=[_raises], output_kind=RequestOutputKind.FINAL_ONLY))
        finally:
            engine.shutdown()

    asyncio.run(main())


def test_classes_that_cannot_be_had(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigurationError, match=r"logits_processors: .*:Missing cannot be loaded"):
        LLM(**settings(checkpoint), logits_processors=[f"{HERE}:Missing"])
    with pytest.raises(ConfigurationError, match=r"request_logits_processors: .*:missing cannot be loaded"):
        LLM(**settings(checkpoint), request_logits_processors=[f"x={HERE}:missing"])


def test_installed_packages_bring_classes(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from octavo.engine import configure as module

    entry = EntryPoint("steps", f"{HERE}:Steps", "octavo.logits_processors")
    monkeypatch.setattr(module, "entry_points", lambda group: [entry] if group == entry.group else [])
    configured = configure(Options(**settings(checkpoint), logits_processors=[f"{HERE}:Steps"]))
    assert configured.config.sampling.logits_processors == (f"{HERE}:Steps",)
    reason = next(one for one in configured.resolved.reasons if one.option == "logits_processors")
    assert "installed packages bring" in reason.why


def test_a_callable_is_not_sent_to_another_process() -> None:
    class Source:
        index, token = 0, b""

        def subscribe(self, callback: Any) -> Any:
            return lambda: None

        def stop(self) -> None: ...

    client = ProcessClient(Source())  # type: ignore[arg-type]
    try:
        with pytest.raises(InvalidRequest, match=r"logits_processors\[1\]: a callable cannot be sent to the engine's"):
            own: list[Any] = [ProcessorCall("x"), _raises]
            client.add(Submit("0", [1], params(logits_processors=own), 0.0))
        assert not client.has_work()
        client.add(Submit("1", [1], params(logits_processors=[ProcessorCall("x")]), 0.0))
    finally:
        client.shutdown()
