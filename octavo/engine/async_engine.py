"""AsyncEngine: each request an async iterator. The core computes on a thread of its own; everything else here, the
detokeniser included, belongs to the event loop."""

from __future__ import annotations

import asyncio
import atexit
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from octavo.core.messages import StepOutputs, StepStats, Submit
from octavo.core.outputs import RequestOutput
from octavo.core.params import SamplingParams
from octavo.engine.client import EngineClient
from octavo.engine.core_thread import CoreThread
from octavo.engine.frontend import Frontend, open_frontend
from octavo.engine.inputs import Message, Prompt
from octavo.engine.outputs import ActiveRequest
from octavo.errors import EngineDead, InvalidRequest, OctavoError, RequestFailed
from octavo.telemetry.recorder import Recorder
from octavo.tokenization.tokenizer import Tokenizer


class AsyncEngine:
    """One engine for many concurrent requests, used from one event loop at a time.

    `model` and `options` are those of `LLM`. A reader that is slower than the engine finds several steps merged into
    one output; it never slows the engine down.
    """

    def __init__(self, model: str | Mapping[str, Any] | None = None, **options: Any) -> None:
        self._start(open_frontend(model, options))

    @classmethod
    def from_engine_args(cls, model: str | Mapping[str, Any] | None = None, **options: Any) -> AsyncEngine:
        return cls(model, **options)

    @classmethod
    def from_frontend(cls, frontend: Frontend) -> AsyncEngine:
        """Round parts that exist already."""
        engine = cls.__new__(cls)
        engine._start(frontend)
        return engine

    def _start(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.inputs, self.outputs = frontend.inputs, frontend.outputs
        self.on_stats: Callable[[StepStats], None] | None = None  # called on the event loop
        self._readers: dict[str, _Reader] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: EngineDead | None = None
        self._core = CoreThread(frontend.client, self._post_outputs, self._post_death)
        atexit.register(self.shutdown)

    # ---- for users, on the event loop

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        add_special_tokens: bool = True,
        trace_headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Outputs as `sampling_params.output_kind` asks, the last with `finished`. Closing the iterator, or
        cancelling the task that reads it, aborts the request. `trace_headers` (W3C Trace Context) name the trace that
        the request's span joins.

        Raises InvalidRequest before anything runs, RequestFailed if this request fails while it runs, EngineDead.
        """
        self._bind(asyncio.get_running_loop())
        request_id = uuid.uuid4().hex if request_id is None else request_id
        if request_id in self._readers:
            raise InvalidRequest(
                f"duplicate request id {request_id!r}: a request of that name is running", "request_id"
            )
        params = self.get_default_sampling_params() if sampling_params is None else sampling_params
        prepared = self.inputs.prepare(
            prompt, params, request_id, priority=priority, add_special_tokens=add_special_tokens
        )
        request = self.outputs.add(prepared)
        request.trace_headers = trace_headers or {}
        reader = self._readers[request_id] = _Reader(request)
        try:
            for submit in prepared.submits:
                self._send(partial(_add, submit), reader)
            is_over = False
            while not is_over:
                await reader.wait()
                if request.error is not None:
                    raise RequestFailed(request_id, request.error)
                output = request.take()
                if output is not None:
                    is_over = output.finished
                    yield output
        finally:
            del self._readers[request_id]
            aborted = self.outputs.abort([request])
            if aborted:
                self._core.send(lambda client: client.abort(aborted))

    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        trace_headers: Mapping[str, str] | None = None,
        **template_settings: Any,
    ) -> AsyncIterator[RequestOutput]:
        """`generate` for a conversation, written out by the model's chat template."""
        prompt = self.inputs.render(messages, **template_settings)
        outputs = self.generate(
            prompt,
            sampling_params,
            request_id,
            priority=priority,
            add_special_tokens=False,
            trace_headers=trace_headers,
        )
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()  # type: ignore[attr-defined]

    async def abort(self, request_id: str) -> None:
        """Ends a request: its iterator gives what there is, with finish reason "abort". Unknown ids are passed by."""
        reader = self._readers.get(request_id)
        if reader is not None:
            aborted = self.outputs.abort([reader.request])
            self._core.send(lambda client: client.abort(aborted))
            reader.wake()

    async def reset_prefix_cache(self) -> bool:
        """False while requests hold blocks."""
        return await asyncio.wrap_future(self._core.send(lambda client: client.reset_prefix_cache()))

    def record_with(self, recorder: Recorder | None) -> None:
        """From here on, `recorder` hears of steps and requests; its live view gets what it asks the core for."""
        self.outputs.recorder = recorder
        if recorder is not None and recorder.live is not None:
            recorder.live.watch = self.watch

    @property
    def recorder(self) -> Recorder | None:
        return self.outputs.recorder

    def watch(self, seconds: float) -> None:
        """For so long, statistics say what each request got of each step."""
        self._core.send(lambda client: client.watch(seconds))

    def get_tokenizer(self) -> Tokenizer:
        return self.frontend.require_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        return self.frontend.default_params()

    @property
    def is_running(self) -> bool:
        return self._death is None

    def shutdown(self) -> None:
        """Ends running requests with EngineDead and gives everything back. May be called again, from any thread."""
        atexit.unregister(self.shutdown)
        self._core.stop()
        if self._death is None:
            self._post_death(EngineDead("the engine was shut down"))

    # ---- between the threads

    def _send(self, command: Callable[[EngineClient], None], reader: _Reader) -> None:
        """A command for one request: if it is refused, its reader hears of it."""
        loop = self._loop
        assert loop is not None

        def done(future: Future[None]) -> None:
            error = future.exception()
            if error is not None and not loop.is_closed():
                loop.call_soon_threadsafe(reader.fail, error)

        self._core.send(command).add_done_callback(done)

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._death is not None:
            raise EngineDead(str(self._death)) from self._death
        if self._loop is loop:
            return
        if self._readers and self._loop is not None and not self._loop.is_closed():
            raise OctavoError("the engine serves requests of another event loop: use one loop for an engine")
        self._drop_readers()
        self._loop = loop

    def _drop_readers(self) -> None:
        """Of a loop that has ended under them."""
        aborted = self.outputs.abort([reader.request for reader in self._readers.values()])
        self._readers.clear()
        if aborted:
            self._core.send(lambda client: client.abort(aborted))

    def _post_outputs(self, outputs: StepOutputs) -> None:
        if outputs.deltas or outputs.stats is not None:
            self._on_loop(self._take_outputs, outputs)

    def _post_death(self, death: EngineDead) -> None:
        self._death = death
        self._on_loop(self._take_death, death)

    def _on_loop(self, function: Callable[..., None], argument: Any) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return  # nobody listens; `_bind` cleans up
        try:
            loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # closed meanwhile
            return

    def _take_outputs(self, outputs: StepOutputs) -> None:
        processed = self.outputs.process(outputs)
        if processed.stopped:
            self._core.send(lambda client: client.abort(processed.stopped))
        for request in processed.changed:
            reader = self._readers.get(request.request_id)
            if reader is not None:
                reader.wake()
        if self.on_stats is not None and outputs.stats is not None:
            self.on_stats(outputs.stats)

    def _take_death(self, death: EngineDead) -> None:
        for reader in self._readers.values():
            reader.fail(death)


def _add(submit: Submit, client: EngineClient) -> None:
    client.add(submit)


class _Reader:
    """Who waits for one request."""

    def __init__(self, request: ActiveRequest) -> None:
        self.request = request
        self._event = asyncio.Event()
        self._error: BaseException | None = None

    def wake(self) -> None:
        self._event.set()

    def fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._event.set()

    async def wait(self) -> None:
        """Until there is something new. Raises what `fail` was given."""
        await self._event.wait()
        self._event.clear()
        if self._error is not None:
            raise self._error
