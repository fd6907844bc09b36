"""The server as a process: sockets, signals, and an engine that loads while it already answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import FrameType
from typing import Any

import msgspec
import uvicorn

from octavo.config.options import Options
from octavo.config.serve_options import ServeOptions
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.configure import configure
from octavo.engine.launch import FrontendGroup, Supervisor
from octavo.server.app import make_app
from octavo.server.certificates import CertificateWatch, check_tls
from octavo.server.metrics import router as metrics_router
from octavo.server.middleware import load_middleware
from octavo.server.page import router as page_router
from octavo.server.response_peers import Place, ResponsePeers
from octavo.server.sockets import address_of
from octavo.server.state import ServedModel, ServerState, check_parsers
from octavo.telemetry.recorder import Recorder

logger = logging.getLogger("octavo.server")

_LAST_WORDS = 5.0  # seconds that streams have to say that they end
INTERRUPTED = 130


def serve(options: Options, serve_options: ServeOptions, sock: socket.socket, supervisor: Supervisor) -> int:
    """Until a signal ends it. The supervisor's process has no configuration yet. Returns the exit status. Raises
    ConfigurationError, and what loading the model raises."""
    load_middleware(serve_options.middleware)
    check_tls(serve_options)
    check_parsers(serve_options)
    if serve_options.api_server_count > 1:
        return _serve_from_several(options, serve_options, sock, supervisor)
    return serve_socket(lambda: AsyncEngine.launch(options, supervisor=supervisor), serve_options, sock)


def serve_socket(
    open_engine: Callable[[], AsyncEngine],
    serve_options: ServeOptions,
    sock: socket.socket,
    place: Place | None = None,
    on_server: Callable[[Server], None] | None = None,
) -> int:
    """Answers on a socket until a signal ends it. `open_engine` is called on the event loop, and returns before the
    engine is ready. `place` is among other processes that answer on the same socket; `on_server` gets what serves."""
    _log_as_octavo(serve_options)
    state = ServerState(serve_options)
    app = make_app(state, [metrics_router(state), page_router(state)])
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=not serve_options.disable_uvicorn_access_log,
        ssl_keyfile=serve_options.ssl_keyfile,
        ssl_certfile=serve_options.ssl_certfile,
        ssl_ca_certs=serve_options.ssl_ca_certs,
        ssl_cert_reqs=serve_options.ssl_cert_reqs,
        timeout_graceful_shutdown=None,
        server_header=False,
    )
    config.load()
    peers = None if place is None else ResponsePeers(app.state.responses, place)
    app.state.responses.elsewhere = peers
    server = Server(config, state, peers)
    if on_server is not None:
        on_server(server)
    with server.capture_signals(), asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        logger.info("listening at %s; the engine is starting", address_of(sock, config.is_ssl))
        runner.run(server.run_with_engine(open_engine, sock))
    return INTERRUPTED if server.signals[:1] == [signal.SIGINT] else 0


def _serve_from_several(
    options: Options, serve_options: ServeOptions, sock: socket.socket, supervisor: Supervisor
) -> int:
    """Several processes answer on one socket for one core; this one starts and watches all of them."""
    signals: list[int] = []
    ends: SimpleQueue[None] = SimpleQueue()  # its `put` may interrupt its `get`, as a signal does

    def note(sig: int, frame: FrameType | None) -> None:
        signals.append(sig)
        ends.put(None)

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, note)
    group = None
    try:
        configured = configure(options)
        supervisor.configure(configured.config)
        settings = msgspec.json.encode(
            {"options": serve_options, "socket": sock.fileno(), "directory": supervisor.directory}
        )
        group = FrontendGroup(
            supervisor,
            configured.config,
            "octavo.server.frontend_process",
            serve_options.api_server_count,
            settings,
            [sock.fileno()],
        )
        where = address_of(sock, serve_options.ssl_certfile is not None)
        logger.info("%d processes answer at %s; the engine is starting", serve_options.api_server_count, where)
        unsubscribe = supervisor.subscribe(lambda status: ends.put(None) if status.state == "dead" else None)
        ends.get()
        unsubscribe()
        supervisor.drain()
    finally:
        if group is not None:
            group.stop(serve_options.shutdown_timeout + _LAST_WORDS, lambda: len(signals) > 1)
        supervisor.stop()
    if supervisor.failure is not None and not signals:
        raise supervisor.failure
    return INTERRUPTED if signals[:1] == [signal.SIGINT] else 0


class Server(uvicorn.Server):
    """The first signal lets running requests end, for shutdown_timeout seconds; a second one does not wait."""

    def __init__(self, config: uvicorn.Config, state: ServerState, peers: ResponsePeers | None = None) -> None:
        super().__init__(config)
        self.state, self.peers = state, peers
        self.signals: list[int] = []

    async def run_with_engine(self, open_engine: Callable[[], AsyncEngine], sock: socket.socket) -> None:
        if self.peers is not None:
            await self.peers.open()
        engine = open_engine()
        loading, watching = asyncio.ensure_future(self._load(engine)), asyncio.ensure_future(self._watch_certificate())
        try:
            await self.serve([sock])
        finally:
            loading.cancel()
            watching.cancel()
            error, _ = await asyncio.gather(loading, watching, return_exceptions=True)
            if self.peers is not None:
                self.peers.close()
            if self.state.recorder is not None:
                await asyncio.to_thread(self.state.recorder.close)
            await asyncio.to_thread(engine.shutdown)
        if isinstance(error, Exception):
            raise error

    async def _load(self, engine: AsyncEngine) -> None:
        try:
            await engine.until_ready()
            served = ServedModel.of(engine, self.state.options)
            configured = engine.frontend.configured
            assert configured is not None
            facts = engine.status.facts
            blocks = facts.num_blocks[0] if facts is not None else None
            recorder = Recorder.from_config(configured.config, served.names[0], num_blocks=blocks)
        except Exception as error:
            self.should_exit = True
            self.state.served.set_exception(error)
            self.state.served.exception()  # whoever asks is told; nobody need ask
            raise
        engine.record_with(recorder)
        self.state.recorder = recorder
        self.state.served.set_result(served)
        logger.info("%s is ready; its context is %d tokens", " = ".join(served.names), served.max_model_len)

    async def _watch_certificate(self) -> None:
        options, context = self.state.options, self.config.ssl
        if not options.enable_ssl_refresh or context is None:
            return
        assert options.ssl_certfile is not None and options.ssl_keyfile is not None
        await CertificateWatch(context, options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certs).run()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self.handle_exit) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.signals.append(sig)
        if len(self.signals) > 1:
            self.force_exit = True
        self.end()

    def end(self) -> None:
        """What one signal does, from any thread: nothing more if there was one."""
        self.should_exit = True
        self.state.is_stopping = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.ensure_future(self._end_requests())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_requests(self) -> None:
        """After the time that they had, running requests end with an error; after some more, their connections."""
        self.state.is_stopping = True
        if self.state.recorder is not None and self.state.recorder.live is not None:
            self.state.recorder.live.close()  # pages that are open need not be waited for
        patience = self.state.options.shutdown_timeout
        if self.state.num_active and patience:
            logger.info("%d requests have %g s to end", self.state.num_active, patience)
        waited = 0.0
        while waited < patience and self.state.num_active and not self.force_exit:
            await asyncio.sleep(0.1)
            waited += 0.1
        served = self.state.served
        if served.done() and not served.cancelled() and served.exception() is None:
            await asyncio.to_thread(served.result().engine.shutdown)
        await asyncio.sleep(_LAST_WORDS)
        self.force_exit = True


def _log_as_octavo(options: ServeOptions) -> None:
    """The HTTP server's log goes where ours goes."""
    handlers: list[Any] = logging.getLogger("octavo").handlers
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        log = logging.getLogger(name)
        log.setLevel("WARNING" if name != "uvicorn.access" and options.uvicorn_log_level == "info" else
                     options.uvicorn_log_level.upper())  # fmt: skip
        log.propagate = False
        log.handlers = list(handlers)
