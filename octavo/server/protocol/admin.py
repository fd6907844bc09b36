"""GET /health, /version and /load."""

from __future__ import annotations

from typing import Literal

from octavo.server.protocol.fields import Closed


class Health(Closed):
    status: Literal["starting", "ready", "restarting", "draining", "failed", "dead", "stopping"]


class Version(Closed):
    version: str


class Load(Closed):
    server_load: int
