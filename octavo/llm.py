"""LLM: batches of prompts in, finished outputs out. The same parts as AsyncEngine, without a thread."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec

from octavo.core.messages import StepStats
from octavo.core.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput
from octavo.core.params import BeamSearchParams, RequestOutputKind, SamplingParams
from octavo.engine.frontend import Frontend, open_frontend
from octavo.engine.inputs import (
    Message,
    Prompt,
    match_params,
    match_priorities,
    split_conversations,
    split_prompts,
)
from octavo.engine.outputs import ActiveRequest, PreparedRequest
from octavo.errors import EngineDead, InvalidRequest
from octavo.telemetry.log import progress_bar
from octavo.tokenization.tokenizer import Tokenizer

_NOTE_INTERVAL = 0.2  # seconds


class LLM:
    """An engine in this process. Use it from one thread at a time.

    `model`: a directory, a GGUF file, a hub id, or the content of a config.json as a dictionary (with
    load_format="dummy"); none is the demo model. `options`: tokenizer, dtype, seed, max_model_len, max_num_seqs,
    max_num_batched_tokens, kv_cache_memory_bytes, enable_prefix_caching and all others of docs/reference/options.md.

    Raises ConfigurationError, CheckpointError, OutOfMemory.
    """

    def __init__(self, model: str | Mapping[str, Any] | None = None, **options: Any) -> None:
        self._start(open_frontend(model, options))

    @classmethod
    def from_frontend(cls, frontend: Frontend) -> LLM:
        """Round parts that exist already."""
        llm = cls.__new__(cls)
        llm._start(frontend)
        return llm

    def _start(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.on_step: Callable[[StepStats, float], None] | None = None  # each step's counters, front-end seconds
        self._num_requests = 0
        self._is_open = True

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """One output for each prompt, in their order.

        Raises InvalidRequest before anything runs if one prompt or its parameters are wrong. A request that fails
        while it runs harms no other: its completion has finish_reason "error", its output's `error` says why.
        Ctrl-C aborts all of them; the engine can be used again.
        """
        listed = split_prompts(prompts)
        return self._run(listed, sampling_params, priority, use_tqdm, add_special_tokens=True)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """`generate` for one conversation or a list of them, written out by the model's chat template."""
        settings: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **(chat_template_kwargs or {}),
        }
        if chat_template is not None:
            settings["chat_template"] = chat_template
        prompts = [self.frontend.inputs.render(one, **settings) for one in split_conversations(messages)]
        return self._run(prompts, sampling_params, priority, use_tqdm, add_special_tokens=False)

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, *, use_tqdm: bool = False
    ) -> list[BeamSearchOutput]:
        """The likeliest outputs of each prompt, best first. Raises InvalidRequest."""
        listed = split_prompts(prompts)
        outputs = self._run(listed, params.as_sampling_params(), None, use_tqdm, add_special_tokens=True)
        return [self._beams(output) for output in outputs]

    def _beams(self, output: RequestOutput) -> BeamSearchOutput:
        tokenizer = self.frontend.tokenizer
        sequences = []
        for one in output.outputs:
            tokens = output.prompt_token_ids + one.token_ids
            text = None if tokenizer is None else tokenizer.decode(tokens)
            sequences.append(
                BeamSearchSequence(
                    tokens, one.cumulative_logprob or 0.0, text, one.logprobs, one.finish_reason, one.stop_reason
                )
            )
        return BeamSearchOutput(sequences)

    def get_tokenizer(self) -> Tokenizer:
        return self.frontend.require_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """The model's generation_config.json over octavo's defaults, as `generation_config` says."""
        return self.frontend.default_params()

    def reset_prefix_cache(self) -> bool:
        self._check_open()
        return self.frontend.client.reset_prefix_cache()

    def shutdown(self) -> None:
        """Gives memory back. May be called again; nothing else may."""
        if self._is_open:
            self._is_open = False
            self.frontend.client.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # ---- one batch

    def _run(
        self, prompts: list[Any], params: Any, priority: Any, use_tqdm: bool, *, add_special_tokens: bool
    ) -> list[RequestOutput]:
        self._check_open()
        params_list = match_params(params, len(prompts), self.get_default_sampling_params())
        priorities = match_priorities(priority, len(prompts))
        final: dict[int, SamplingParams] = {}  # by identity: most batches share one
        prepared = []
        for position, (prompt, own, rank) in enumerate(zip(prompts, params_list, priorities, strict=True)):
            try:
                if isinstance(own, SamplingParams) and id(own) not in final:
                    final[id(own)] = msgspec.structs.replace(own, output_kind=RequestOutputKind.FINAL_ONLY)
                prepared.append(
                    self.frontend.inputs.prepare(
                        prompt,
                        final.get(id(own), own),
                        str(self._num_requests + position),
                        priority=rank,
                        add_special_tokens=add_special_tokens,
                    )
                )
            except InvalidRequest as error:
                if len(prompts) > 1:
                    error.add_note(f"in prompt {position} of {len(prompts)}")
                raise
        self._num_requests += len(prepared)
        with _deferred_interrupt() as was_interrupted:
            return self._complete(prepared, was_interrupted, use_tqdm)

    def _complete(
        self, prepared: list[PreparedRequest], was_interrupted: Callable[[], bool], use_tqdm: bool
    ) -> list[RequestOutput]:
        client, outputs = self.frontend.client, self.frontend.outputs
        requests = [outputs.add(one) for one in prepared]
        results: dict[str, RequestOutput] = {}
        progress = _BatchProgress(requests, use_tqdm and bool(requests))
        try:
            for one in prepared:
                for submit in one.submits:
                    client.add(submit)
            while len(results) < len(requests):
                if was_interrupted():
                    raise KeyboardInterrupt
                if not client.has_work():
                    raise EngineDead(f"the engine has lost {len(requests) - len(results)} requests")
                step = client.step()
                before = time.perf_counter()
                processed = outputs.process(step)
                if processed.stopped:
                    client.abort(processed.stopped)
                for request in processed.changed:
                    output = request.take()
                    assert output is not None and output.finished
                    results[request.request_id] = output
                    progress.finish(request)
                if self.on_step is not None and step.stats is not None:
                    self.on_step(step.stats, time.perf_counter() - before)
        finally:
            progress.close()
            aborted = outputs.abort(requests)
            if aborted:
                client.abort(aborted)
        return [results[request.request_id] for request in requests]

    def _check_open(self) -> None:
        if not self._is_open:
            raise EngineDead("the engine was shut down")


class _BatchProgress:
    """Requests done, and tokens a second."""

    def __init__(self, requests: list[ActiveRequest], enabled: bool) -> None:
        self._bar = progress_bar(total=len(requests), description="Generating", unit="requests", enabled=enabled)
        self._started = self._noted = time.monotonic()
        self._num_in = self._num_out = 0

    def finish(self, request: ActiveRequest) -> None:
        self._num_in += len(request.prompt_token_ids)
        self._num_out += request.num_output_tokens
        self._bar.advance()
        if time.monotonic() - self._noted >= _NOTE_INTERVAL:
            self._note()

    def _note(self) -> None:
        self._noted = time.monotonic()
        elapsed = max(self._noted - self._started, 1e-9)
        self._bar.note(f"in {self._num_in / elapsed:,.0f} tok/s, out {self._num_out / elapsed:,.0f} tok/s")

    def close(self) -> None:
        self._note()
        self._bar.close()


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of a step, so that the core is never left half way; a second one does not wait.

    Yields whether there was one. Does nothing on other threads than the main one, which Ctrl-C does not reach.
    """
    interrupted = False
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:  # during the last step
        raise KeyboardInterrupt
