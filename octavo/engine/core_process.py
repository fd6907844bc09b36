"""The core as a process of its own: `python -m octavo.engine.core_process FD DIRECTORY`, started by `launch.py`.

It ends when its parent does, whatever it is doing, and takes the private directory of its sockets with it.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sys
import threading
import time
from functools import partial
from importlib import import_module
from queue import SimpleQueue

import zmq

from octavo.config import env
from octavo.config.engine_config import decode_config
from octavo.core.messages import CoreFacts, Failed, Heartbeat, LaunchCore, Ready, Stop
from octavo.core.wire import MalformedMessage
from octavo.engine import torch_import
from octavo.engine.control import Channel, parent_channel
from octavo.engine.core_server import CoreServer, open_router
from octavo.errors import OctavoError
from octavo.platforms import cpu
from octavo.platforms.detect import detect
from octavo.telemetry.log import setup_logging
from octavo.telemetry.phases import Phases

_log = logging.getLogger(__name__)

# Python alone, which is read while torch's library is mapped.
_BEFORE_TORCH = ("octavo.scheduler.scheduler", "octavo.cache.manager", "octavo.config.resolve")


class Parent:
    """Listens to the parent on a thread of its own, so that neither loading nor a long step can make it deaf."""

    def __init__(self, channel: Channel, directory: str) -> None:
        self.launch: SimpleQueue[LaunchCore] = SimpleQueue()
        self._channel, self._directory = channel, directory
        self._server: CoreServer | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="octavo-parent", daemon=True).start()

    def serve(self, server: CoreServer) -> None:
        """From here on, `Stop` ends its loop."""
        with self._lock:
            self._server = server

    def _listen(self) -> None:
        while True:
            try:
                message = self._channel.receive()
            except MalformedMessage as error:
                _log.error("the parent talks nonsense: %s", error)
                message = None
            if isinstance(message, LaunchCore):
                self.launch.put(message)
            elif isinstance(message, Heartbeat):
                if self._server is not None:
                    self._server.call(partial(self._channel.send, message))
            elif isinstance(message, Stop):
                with self._lock:
                    if self._server is None:  # still loading
                        os._exit(0)
                    self._server.stop()
            else:
                shutil.rmtree(self._directory, ignore_errors=True)
                os._exit(1)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    channel = parent_channel(int(arguments[0]))
    parent = Parent(channel, arguments[1])
    started = time.perf_counter()
    phases = Phases()
    gc.disable()  # until all is loaded
    if cpu.has_kernels():
        env.rest_idle_threads()  # here, since torch's threads read it when its library is loaded
    torch_import.map_library()
    for name in _BEFORE_TORCH:
        import_module(name)
    assemble = import_module("octavo.engine.assemble")  # torch: beside the parent, which looks for the model meanwhile
    phases.end("imports")
    launch = parent.launch.get()
    phases.end("waiting for the configuration")
    setup_logging(launch.log_level)
    try:
        config = decode_config(launch.config)
        core = assemble.build_engine(config, detect(config.machine.platform), phases)
        faults = env.read("OCTAVO_TEST_FAULTS")
        if faults:
            faulty = import_module("octavo.engine.faults")
            runner = core.executor.worker.runner
            runner.model = faulty.FaultyModel(runner.model, faulty.read_faults(faults))
    except Exception as error:
        if not isinstance(error, OctavoError):
            _log.exception("the engine could not be built")
        channel.send(Failed(type(error).__name__, str(error)))
        return 1
    gc.enable()
    gc.collect()
    gc.freeze()  # the model's objects live as long as the process: no collection needs to walk them

    worker = core.executor.worker
    facts = CoreFacts(
        max_total_tokens=core.max_total_tokens,
        vocab_size=config.model.vocab_size,
        block_size=core.scheduler.cache.block_size,
        num_blocks=[(worker.memory.num_slabs - 1) * count for count in worker.slabs.blocks_per_slab],
        cache_bytes=worker.cache.num_bytes,
        load_seconds=time.perf_counter() - started,
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = open_router(context, launch.address)
    server = CoreServer(core, router, launch.token, facts.vocab_size)
    signal.signal(signal.SIGTERM, lambda *_: _drain(server))
    parent.serve(server)
    channel.send(Ready(router.get_string(zmq.LAST_ENDPOINT), facts))
    server.run()
    core.shutdown()
    context.destroy()
    return 0


def _drain(server: CoreServer) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait, whatever is going on
    server.drain()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
