"""`octavo serve` as a program: first the socket, which takes connections at once, and the engine's process, then what
answers.

On several processors the front end's imports and the engine's run beside one another; on one, the front end's come
first.
"""

from __future__ import annotations

from importlib import import_module

from octavo.config.options import Options
from octavo.config.serve_options import ServeOptions
from octavo.engine.launch import Supervisor
from octavo.platforms.cpu import affinity
from octavo.server.sockets import listening
from octavo.telemetry.collection import collection_paused


def serve(options: Options, serve_options: ServeOptions) -> int:
    """Until a signal ends it. Returns the exit status. Raises ConfigurationError, and what loading the model raises."""
    with listening(serve_options) as sock:
        supervisor = Supervisor() if len(affinity()) > 1 else None
        try:
            with collection_paused():
                run = import_module("octavo.server.run")
            supervisor = supervisor or Supervisor()
            status: int = run.serve(options, serve_options, sock, supervisor)
            return status
        finally:
            if supervisor is not None:
                supervisor.stop()
