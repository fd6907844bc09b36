"""After a failed step. Was it too large? Then steps are smaller for a while. Else, who was it? Suspects run apart from
the others until they are cleared or found guilty."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable


class Quarantine:
    """Groups of request ids that must run by themselves, one group after the other, at depth 1.

    A group is cleared when each member has produced a token or is gone. A group that fails again is halved; a single
    request that fails is guilty. So one guilty row among n is found in about 2 log2(n) steps.
    """

    def __init__(self) -> None:
        self._groups: deque[list[str]] = deque()
        self._unproven: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._groups)

    def __contains__(self, request_id: str) -> bool:
        return any(request_id in group for group in self._groups)

    @property
    def group(self) -> list[str] | None:
        """The requests that may run now; None if everybody may."""
        return self._groups[0] if self._groups else None

    def suspect(self, groups: Iterable[list[str]]) -> None:
        """Each of these groups is to be tried by itself; who was in another one leaves it."""
        groups = [group for group in groups if group]
        head = self._groups[0] if self._groups else None
        moved = {request_id for group in groups for request_id in group}
        for group in self._groups:
            group[:] = [request_id for request_id in group if request_id not in moved]
        self._groups = deque([group for group in self._groups if group] + groups)
        if self._groups and self._groups[0] is head:
            self._unproven -= moved
        else:
            self._start()

    def split(self) -> str | None:
        """The group at hand failed: its halves are tried next. Returns the guilty one if it stood alone."""
        group = self._groups.popleft()
        guilty = None
        if len(group) == 1:
            guilty = group[0]
        else:
            middle = len(group) // 2
            self._groups.extendleft([group[middle:], group[:middle]])
        self._start()
        return guilty

    def retain(self, live: Container[str]) -> None:
        """Whoever is not live has nothing to prove."""
        for group in self._groups:
            group[:] = [request_id for request_id in group if request_id in live]
        self.clear([request_id for request_id in self._unproven if request_id not in live])

    def clear(self, request_ids: Iterable[str]) -> None:
        """These have produced a token."""
        self._unproven.difference_update(request_ids)
        while self._groups and not self._unproven:
            self._groups.popleft()
            self._start()

    def _start(self) -> None:
        self._unproven = set(self._groups[0]) if self._groups else set()


class StepLimit:
    """How many tokens a step may have: `most`, but fewer after one that ran out of memory, until many have not."""

    PATIENCE = 256  # steps; twice as many after each failure

    def __init__(self, most: int) -> None:
        self.most = self.tokens = most
        self._least = min(most, 16)
        self._patience = self.PATIENCE
        self._passed = 0

    def fail(self, num_tokens: int) -> bool:
        """A step of so many ran out of memory. False if it can hardly have been too large."""
        if num_tokens <= self._least:
            return False
        self.tokens = max(self._least, min(self.tokens, num_tokens) // 2)
        self._patience, self._passed = 2 * self._patience, 0
        return True

    def passed(self) -> None:
        """A step did not."""
        if self.tokens < self.most:
            self._passed += 1
            if self._passed >= self._patience:
                self.tokens, self._passed = min(self.most, 2 * self.tokens), 0
