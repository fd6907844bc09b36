"""AsyncEngine: each request an async iterator. The core computes on a thread or in a process of its own; everything
else here, the detokeniser included, belongs to the event loop."""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

import octavo.errors
from octavo.config.engine_config import AdmissionConfig, decode_config
from octavo.config.options import Options
from octavo.config.resolve import Resolved
from octavo.core.messages import CoreState, CoreStats, CoreStatus, StepOutputs, StepStats, Submit
from octavo.core.outputs import RequestOutput
from octavo.core.params import SamplingParams
from octavo.engine.admission import Admission
from octavo.engine.client import EngineClient
from octavo.engine.configure import Configured, configure
from octavo.engine.core_thread import CoreThread
from octavo.engine.frontend import Frontend, load_frontend, open_frontend
from octavo.engine.inputs import InputProcessor, Message, Prompt
from octavo.engine.launch import ParentSource, Supervisor
from octavo.engine.loop_driver import LoopDriver
from octavo.engine.outputs import ActiveRequest, OutputProcessor
from octavo.engine.process_client import ProcessClient
from octavo.errors import (
    EngineDead,
    EngineStarting,
    InvalidRequest,
    OctavoError,
    Overloaded,
    RequestFailed,
    ShuttingDown,
    Unavailable,
)
from octavo.platforms.detect import detect
from octavo.telemetry.finished import current_trace
from octavo.telemetry.recorder import Recorder
from octavo.tokenization.tokenizer import Tokenizer

Result = TypeVar("Result")


class AsyncEngine:
    """One engine for many concurrent requests, used from one event loop at a time.

    `model` and `options` are those of `LLM`. A reader that is slower than the engine finds several steps merged into
    one output; it never slows the engine down.
    """

    def __init__(self, model: str | Mapping[str, Any] | None = None, **options: Any) -> None:
        self._start_inline(open_frontend(model, options))

    @classmethod
    def from_engine_args(cls, model: str | Mapping[str, Any] | None = None, **options: Any) -> AsyncEngine:
        return cls(model, **options)

    @classmethod
    def from_frontend(cls, frontend: Frontend) -> AsyncEngine:
        """Round parts that exist already."""
        engine = cls.__new__(cls)
        engine._start_inline(frontend)
        return engine

    @classmethod
    def launch(
        cls, options: Options, model: Mapping[str, Any] | None = None, supervisor: Supervisor | None = None
    ) -> AsyncEngine:
        """An engine whose core is a process of its own, which is restarted if it dies. Returns at once: requests wait
        until it is there, `status` says how it is, `until_ready` raises why it cannot be had. `model` is the content
        of a config.json, in place of `options.model`; `supervisor` has started the process already."""
        supervisor = supervisor or Supervisor()
        engine = cls.__new__(cls)
        engine._start_process(supervisor)

        def load() -> None:
            try:
                configured = configure(options, model)
                supervisor.configure(configured.config)
                engine._set_frontend(load_frontend(configured, engine._client))
            except Exception as error:
                supervisor.give_up(error)
                engine._loading.set_exception(EngineDead(f"the engine cannot start: {error}"))

        threading.Thread(target=load, name="octavo-load", daemon=True).start()
        return engine

    @classmethod
    def attach(cls, source: ParentSource) -> AsyncEngine:
        """In a front end that a FrontendGroup started: the core is shared with the others. Loads the tokenizer."""
        config = decode_config(source.launch.config)
        engine = cls.__new__(cls)
        engine._start_process(source)
        configured = Configured(Resolved(config, []), detect(config.machine.platform))
        engine._set_frontend(load_frontend(configured, engine._client), share=source.launch.count)
        return engine

    def _start_inline(self, frontend: Frontend) -> None:
        self._prepare(CoreThread(frontend.client, self._post_outputs, self._post_death))
        self._source: Supervisor | ParentSource | None = None
        self._set_frontend(frontend)

    def _start_process(self, source: Supervisor | ParentSource) -> None:
        self._source, self._client = source, ProcessClient(source)
        self._prepare(LoopDriver(self._client, self._take_outputs, self._note_death))

    def _prepare(self, core: CoreDriver) -> None:
        self.on_stats: Callable[[StepStats], None] | None = None  # called on the event loop
        self._core = core
        self._loading: Future[Frontend] = Future()
        self._loading.set_running_or_notify_cancel()
        self._readers: dict[str, _Reader] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: EngineDead | None = None
        self._is_draining = False
        self._recorder: Recorder | None = None
        self._is_idle = asyncio.Event()
        atexit.register(self.shutdown)

    def _set_frontend(self, frontend: Frontend, share: int = 1) -> None:
        limits = AdmissionConfig() if frontend.configured is None else frontend.configured.config.admission
        self.admission = Admission(limits, share)
        if self._source is not None:

            def learn(status: CoreStatus) -> None:
                if status.facts is not None:
                    frontend.learn(status.facts.max_total_tokens)

            self._source.subscribe(learn)
        frontend.outputs.recorder = self._recorder
        self._loading.set_result(frontend)

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
        the request's span joins; without them `current_trace` of the context does.

        Raises InvalidRequest and Unavailable (Overloaded, ShuttingDown, EngineDead) before anything runs, RequestFailed
        if this request fails while it runs, EngineRestarting or EngineDead if the core does.
        """
        self._bind(asyncio.get_running_loop())
        if not self._loading.done():
            await asyncio.wrap_future(self._loading)
        frontend = self.frontend
        request_id = uuid.uuid4().hex if request_id is None else request_id
        if request_id in self._readers:
            raise InvalidRequest(
                f"duplicate request id {request_id!r}: a request of that name is running", "request_id"
            )
        params = self.get_default_sampling_params() if sampling_params is None else sampling_params
        prepared = frontend.inputs.prepare(
            prompt, params, request_id, priority=priority, add_special_tokens=add_special_tokens
        )
        if self._is_draining:
            raise ShuttingDown("the engine is about to end and takes no new requests")
        try:
            self.admission.enter(prepared.submits)
        except Overloaded as error:
            if self._recorder is not None:
                self._recorder.rejection(error.limit)
            raise
        request = frontend.outputs.add(prepared)
        request.trace_headers = current_trace.get() if trace_headers is None else trace_headers
        reader = self._readers[request_id] = _Reader(request)
        try:
            for submit in prepared.submits:
                self._send(partial(_add, submit), reader)
            is_over = False
            while not is_over:
                await reader.wait()
                if request.error is not None:
                    raise _error_of(request)
                output = request.take()
                if output is not None:
                    is_over = output.finished
                    yield output
        finally:
            del self._readers[request_id]
            self._end([request])
            if not self._readers:
                self._is_idle.set()

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
        if not self._loading.done():
            await asyncio.wrap_future(self._loading)
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
            self._end([reader.request])
            reader.wake()

    async def reset_prefix_cache(self) -> bool:
        """False while requests hold blocks."""
        self._bind(asyncio.get_running_loop())
        return await asyncio.wrap_future(self._core.reset_prefix_cache())

    async def core_stats(self) -> CoreStats:
        """The core at this moment. Raises Unavailable where there is none."""
        self._bind(asyncio.get_running_loop())
        return await asyncio.wrap_future(self._core.stats())

    async def until_ready(self) -> None:
        """Returns when the first answer could be given. Raises ConfigurationError, CheckpointError or OutOfMemory if
        the engine cannot start, EngineDead."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake(*_: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        self._loading.add_done_callback(wake)
        unsubscribe = None if self._source is None else self._source.subscribe(wake)
        try:
            while True:
                status = self.status
                if status.state == "dead":
                    failure = getattr(self._source, "failure", None)
                    raise failure or EngineDead(status.reason)
                if self._loading.done() and status.state == "ready":
                    self._loading.result()
                    return
                await changed.wait()
                changed.clear()
        finally:
            if unsubscribe is not None:
                unsubscribe()

    async def drain(self, seconds: float) -> bool:
        """Takes no new requests, and waits until those that it has are done. False if `seconds` were not enough: what
        is left ends with `shutdown`."""
        self._is_draining = True
        if self._source is not None:
            self._source.drain()
        end = time.monotonic() + seconds
        while self._readers:
            self._is_idle.clear()
            try:
                await asyncio.wait_for(self._is_idle.wait(), max(end - time.monotonic(), 0.0))
            except TimeoutError:
                return False
        return True

    def record_with(self, recorder: Recorder | None) -> None:
        """From here on, `recorder` hears of steps and requests; its live view gets what it asks the core for."""
        self._recorder = recorder
        if self._loading.done():
            self.outputs.recorder = recorder
        if recorder is not None and recorder.live is not None:
            recorder.live.watch = self.watch

    @property
    def recorder(self) -> Recorder | None:
        return self._recorder

    def watch(self, seconds: float) -> None:
        """For so long, statistics say what each request got of each step. Called on the event loop."""
        if self.is_running and self._loading.done():
            self._bind(asyncio.get_running_loop())  # nobody may have asked for anything yet
            self._core.send(lambda client: client.watch(seconds))

    def get_tokenizer(self) -> Tokenizer:
        return self.frontend.require_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        return self.frontend.default_params()

    @property
    def frontend(self) -> Frontend:
        """Raises EngineStarting while it is loading, EngineDead if it could not be loaded."""
        if not self._loading.done():
            raise EngineStarting("the engine is still loading its tokenizer")
        return self._loading.result()

    @property
    def inputs(self) -> InputProcessor:
        return self.frontend.inputs

    @property
    def outputs(self) -> OutputProcessor:
        return self.frontend.outputs

    @property
    def num_requests(self) -> int:
        """That somebody here waits for."""
        return len(self._readers)

    @property
    def status(self) -> CoreStatus:
        """Whether requests can be answered now. Any thread may ask."""
        if self._death is not None:
            return CoreStatus("dead", 1 if self._source is None else self._source.status.incarnation, str(self._death))
        status = CoreStatus("ready", 1) if self._source is None else self._source.status
        if status.state == "dead":
            return status
        if self._is_draining:
            return msgspec.structs.replace(status, state="draining", reason="the engine is about to end")
        if status.state == "ready" and not self._loading.done():
            return msgspec.structs.replace(status, state="starting", reason="the tokenizer is loading")
        return status

    @property
    def state(self) -> CoreState:
        return self.status.state

    @property
    def is_running(self) -> bool:
        return self.status.state != "dead"

    def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Ends running requests with EngineDead and gives everything back. May be called again, from any thread; from
        another one than the event loop's it can `drain` first, on the loop `await engine.drain(...)` comes before."""
        loop = self._loop
        if drain_seconds > 0 and loop is not None and loop.is_running():
            if _running_loop() is loop:
                raise OctavoError("shutdown cannot wait on its own event loop: await drain(seconds) before it")
            asyncio.run_coroutine_threadsafe(self.drain(drain_seconds), loop).result()
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
        if self._loop is not loop:
            self._change_loop(loop)
        if self._death is not None:
            raise EngineDead(str(self._death)) from self._death

    def _change_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._readers and self._loop is not None and not self._loop.is_closed():
            raise OctavoError("the engine serves requests of another event loop: use one loop for an engine")
        left = [reader.request for reader in self._readers.values()]  # the loop has ended under them
        self._readers.clear()
        self._end(left)
        self._loop = loop
        self._core.bind(loop)

    def _end(self, requests: list[ActiveRequest]) -> None:
        """Whatever of them is unfinished."""
        aborted = self.outputs.abort(requests) if requests else []
        if aborted:
            self.admission.leave(aborted)
            self._core.send(lambda client: client.abort(aborted))

    def _post_outputs(self, outputs: StepOutputs) -> None:
        if outputs.deltas or outputs.started or outputs.stats is not None:
            self._on_loop(self._take_outputs, outputs)

    def _note_death(self, death: EngineDead) -> None:
        self._death = death
        self._take_death(death)

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
        if self.admission.num_requests:
            self.admission.leave(outputs.started)
            self.admission.leave([delta.request_id for delta in outputs.deltas])
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
            if not reader.request.finished:  # an answer that is complete counts, read or not
                reader.fail(death)


class CoreDriver(Protocol):
    """How the core runs beside the event loop: CoreThread or LoopDriver."""

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """From here on this loop asks."""

    def send(self, command: Callable[[EngineClient], Result]) -> Future[Result]: ...

    def reset_prefix_cache(self) -> Future[bool]: ...

    def stats(self) -> Future[CoreStats]: ...

    def stop(self) -> None: ...


def _error_of(request: ActiveRequest) -> OctavoError:
    """Why it ended, as the error that the core named."""
    assert request.error is not None
    kind = getattr(octavo.errors, request.error_type or "", None)
    if isinstance(kind, type) and issubclass(kind, InvalidRequest):
        return InvalidRequest(request.error, request.error_field)
    if isinstance(kind, type) and issubclass(kind, Unavailable):
        return kind(request.error)
    return RequestFailed(request.request_id, request.error)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


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
