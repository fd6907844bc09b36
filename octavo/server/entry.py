"""`octavo serve` as a program: first the socket and the engine's process, then what answers.

On two processors the front end's imports and the engine's run beside one another.
"""

from __future__ import annotations

from importlib import import_module

from octavo.config.options import Options
from octavo.config.serve_options import ServeOptions
from octavo.engine.launch import Supervisor
from octavo.server.sockets import listening


def serve(options: Options, serve_options: ServeOptions) -> int:
    """Until a signal ends it. Returns the exit status. Raises ConfigurationError, and what loading the model raises."""
    with listening(serve_options) as sock:
        supervisor = Supervisor()
        try:
            status: int = import_module("octavo.server.run").serve(options, serve_options, sock, supervisor)
            return status
        finally:
            supervisor.stop()
