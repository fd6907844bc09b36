"""How much may wait in front of the core. What is beyond is refused at once, before anything of it is queued."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from octavo.config.engine_config import AdmissionConfig
from octavo.core.messages import Submit
from octavo.errors import Overloaded


class Admission:
    """Counts requests from their admission until the core begins them. Where `share` front ends divide the limits,
    each has its part, and one at least."""

    def __init__(self, limits: AdmissionConfig, share: int = 1) -> None:
        self.max_requests, self.max_tokens = (
            _part(limits.max_queued_requests, share),
            _part(limits.max_queued_tokens, share),
        )
        self.num_tokens = 0
        self._queued: dict[str, int] = {}  # id that the core knows -> prompt tokens

    @property
    def num_requests(self) -> int:
        return len(self._queued)

    def enter(self, submits: Sequence[Submit]) -> None:
        """All of them or none. Raises Overloaded."""
        num_tokens = sum(len(submit.prompt_token_ids) for submit in submits)
        if self.max_requests is not None and self.num_requests + len(submits) > self.max_requests:
            raise Overloaded(
                f"{self.num_requests} requests are waiting, and max_num_queued_reqs allows {self.max_requests}: "
                f"{len(submits)} more would be too many; try again later",
                limit="max_num_queued_reqs",
            )
        if self.max_tokens is not None and self.num_tokens + num_tokens > self.max_tokens:
            raise Overloaded(
                f"{self.num_tokens} prompt tokens are waiting, and max_num_queued_tokens allows {self.max_tokens}: "
                f"{num_tokens} more would be too many; try again later",
                limit="max_num_queued_tokens",
            )
        for submit in submits:
            self._queued[submit.request_id] = len(submit.prompt_token_ids)
        self.num_tokens += num_tokens

    def leave(self, request_ids: Iterable[str]) -> None:
        """The core has begun them, or they are over. Those that have left already are passed by."""
        for request_id in request_ids:
            self.num_tokens -= self._queued.pop(request_id, 0)


def _part(limit: int | None, share: int) -> int | None:
    return None if limit is None else max(limit // share, 1)
