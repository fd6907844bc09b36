"""The socket that is listened on. Imports nothing heavy, so that it is there at once."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator

from octavo.config.serve_options import ServeOptions
from octavo.errors import ConfigurationError

_BACKLOG = 2048


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
