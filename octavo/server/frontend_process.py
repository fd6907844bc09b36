"""One of several server processes that share a core: `python -m octavo.server.frontend_process FD`, run by `run.py`."""

from __future__ import annotations

import socket
import sys

import msgspec

from octavo.config.serve_options import ServeOptions
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.launch import ParentSource
from octavo.server.response_peers import Place
from octavo.server.run import Server, serve_socket
from octavo.telemetry.log import setup_logging


class Settings(msgspec.Struct):
    """What the parent passes on. `socket` is the descriptor of the listening one, inherited; `directory` is for sockets
    between the front ends."""

    options: ServeOptions
    socket: int
    directory: str


def main() -> int:
    source = ParentSource(int(sys.argv[1]))
    setup_logging(source.launch.log_level)
    settings = msgspec.json.decode(source.launch.settings, type=Settings)

    def obey(server: Server) -> None:
        source.on_stop = server.end  # not a signal: this process may have got its own, with all of its group

    place = Place(settings.directory, source.index, source.launch.count)
    with socket.socket(fileno=settings.socket) as sock:
        return serve_socket(lambda: AsyncEngine.attach(source), settings.options, sock, place, obey)


if __name__ == "__main__":
    sys.exit(main())
