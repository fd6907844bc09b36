"""The server as a process: sockets, signals, and an engine that loads while it already answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from octavo.config.options import Options
from octavo.config.serve_options import ServeOptions
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.configure import configure
from octavo.engine.frontend import start_frontend
from octavo.errors import ConfigurationError
from octavo.server.app import make_app
from octavo.server.state import ServedModel, ServerState

logger = logging.getLogger("octavo.server")

_BACKLOG = 2048
_LAST_WORDS = 5.0  # seconds that streams have to say that they end
INTERRUPTED = 130


def serve(options: Options, serve_options: ServeOptions) -> int:
    """Until a signal ends it. Returns the exit status. Raises what loading the model raises."""
    if serve_options.api_server_count != 1:
        raise ConfigurationError(
            "api_server_count must be 1 while the engine shares the server's process, got "
            f"{serve_options.api_server_count}"
        )
    with listening(serve_options) as sock:
        _log_as_octavo(serve_options)
        state = ServerState(serve_options)
        config = uvicorn.Config(
            make_app(state),
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=not serve_options.disable_uvicorn_access_log,
            root_path=serve_options.root_path,
            ssl_keyfile=serve_options.ssl_keyfile,
            ssl_certfile=serve_options.ssl_certfile,
            ssl_ca_certs=serve_options.ssl_ca_certs,
            ssl_cert_reqs=serve_options.ssl_cert_reqs,
            timeout_graceful_shutdown=None,
            server_header=False,
        )
        try:
            config.load()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"ssl_keyfile, ssl_certfile: {error}") from error
        server = _Server(config, state)
        with server.capture_signals(), asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            logger.info("listening at %s; the engine is starting", address_of(sock, config.is_ssl))
            runner.run(server.run_with_engine(options, sock))
    status = INTERRUPTED if server.signals[:1] == [signal.SIGINT] else 0
    if server.is_loading:  # on a thread that nothing but the process's end stops
        logging.shutdown()
        os._exit(status)
    return status


def open_engine(options: Options) -> AsyncEngine:
    """Loads the model; takes as long as that takes."""
    return AsyncEngine.from_frontend(start_frontend(configure(options)))


class _Server(uvicorn.Server):
    """The first signal lets running requests end, for shutdown_timeout seconds; a second one does not wait."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self.state = state
        self.signals: list[int] = []
        self.is_loading = True

    async def run_with_engine(self, options: Options, sock: socket.socket) -> None:
        loading = asyncio.ensure_future(self._load(options))
        try:
            await self.serve([sock])
        finally:
            self.is_loading = not loading.done()
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        if not loading.cancelled():
            engine = loading.result()  # raises why there is none
            await asyncio.to_thread(engine.shutdown)

    async def _load(self, options: Options) -> AsyncEngine:
        try:
            engine = await _on_thread(lambda: open_engine(options))
        except BaseException as error:
            self.should_exit = True
            if not self.state.served.done():
                self.state.served.set_exception(error)
                self.state.served.exception()  # whoever asks is told; nobody need ask
            raise
        try:
            served = ServedModel.of(engine, self.state.options)
        except BaseException:
            self.should_exit = True
            await asyncio.to_thread(engine.shutdown)
            raise
        self.state.served.set_result(served)
        logger.info("%s is ready; its context is %d tokens", " = ".join(served.names), served.max_model_len)
        return engine

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
        if self.should_exit:
            self.force_exit = True
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


async def _on_thread(work: Callable[[], AsyncEngine]) -> AsyncEngine:
    """What `work` returns, from a thread that the process need not wait for."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[AsyncEngine] = loop.create_future()

    def tell(engine: AsyncEngine | None, error: BaseException | None) -> None:
        if not result.done():
            if error is not None:
                result.set_exception(error)
            elif engine is not None:
                result.set_result(engine)

    def run() -> None:
        try:
            outcome: tuple[AsyncEngine | None, BaseException | None] = (work(), None)
        except BaseException as error:
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell, *outcome)

    threading.Thread(target=run, name="octavo-load", daemon=True).start()
    return await result


@contextlib.contextmanager
def listening(options: ServeOptions) -> Iterator[socket.socket]:
    """The bound socket; a Unix socket's file goes when it is left. Raises ConfigurationError."""
    if options.uds is not None:
        sock = _unix_socket(options.uds)
    else:
        sock = _tcp_socket(options.host or "0.0.0.0", options.port)
    try:
        yield sock
    finally:
        sock.close()
        if options.uds is not None:
            with contextlib.suppress(OSError):
                os.unlink(options.uds)


def _tcp_socket(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigurationError(f"host {host}: {error.strerror or error}") from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return sock


def _unix_socket(path: str) -> socket.socket:
    """Takes the place of a socket that nobody listens on, never of a file or of a running server."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode) and not _is_answered(path):
            os.unlink(path)
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigurationError(f"cannot listen on uds {path}: {error.strerror or error}") from None
    return sock


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0


def address_of(sock: socket.socket, is_ssl: bool) -> str:
    name = sock.getsockname()
    if isinstance(name, str):
        return f"the socket {name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if is_ssl else 'http'}://{host}:{name[1]}"


def _log_as_octavo(options: ServeOptions) -> None:
    """The HTTP server's log goes where ours goes."""
    handlers: list[Any] = logging.getLogger("octavo").handlers
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        log = logging.getLogger(name)
        log.setLevel("WARNING" if name != "uvicorn.access" and options.uvicorn_log_level == "info" else
                     options.uvicorn_log_level.upper())  # fmt: skip
        log.propagate = False
        log.handlers = list(handlers)
