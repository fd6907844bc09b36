"""Forms become grammars beside the engine's loop: by the first backend that can honour all of a form, cached by what
the form says, and bounded whatever it says."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pkgutil import resolve_name

import msgspec
import numpy as np

from octavo.core.structured import AUTO_ORDER, StructuredOutputsParams
from octavo.errors import InvalidRequest
from octavo.structured.grammar import Backend, Grammar, MatcherFailed, Unsupported
from octavo.structured.schema import is_plain
from octavo.structured.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_HOMES = {
    "llguidance": "octavo.structured.llguidance:LlguidanceBackend",
    "xgrammar": "octavo.structured.xgrammar:XgrammarBackend",
    "outlines": "octavo.structured.outlines:OutlinesBackend",
    "lm-format-enforcer": "octavo.structured.lm_format_enforcer:LmFormatEnforcerBackend",
}
_PACKAGES = {"outlines": "outlines-core"}
_MAX_CACHED = 64  # grammars; a hostile one may weigh tens of MB
assert set(_HOMES) == set(AUTO_ORDER)


class Compiled(msgspec.Struct, frozen=True):
    grammar: Grammar
    backend: Backend


class Compiler:
    """`open_vocabulary` is called once, on a compiling thread, when the first form comes. Thread-safe.

    llguidance compiles plain forms in threads of this process. Whatever else is compiled is first tried in a process
    that is ended when it takes too long; there are threads of their own that wait for it.
    """

    def __init__(self, open_vocabulary: Callable[[], Vocabulary], num_threads: int = 1) -> None:
        self._open_vocabulary = open_vocabulary
        self._num_threads = num_threads
        self._fast = ThreadPoolExecutor(2, "octavo-grammar")
        self._slow = ThreadPoolExecutor(2, "octavo-grammar-slow")
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, Future[Compiled]] = OrderedDict()
        self._backends: dict[str, Backend | str] = {}  # or why it is absent
        self._vocabulary: Vocabulary | None = None
        self._setup = threading.Lock()

    def compile(self, form: StructuredOutputsParams, order: Sequence[str]) -> Future[Compiled]:
        """By the first of the backends in `order` that can; fails with InvalidRequest. Forms that say the same share
        one result, under way or done."""
        key = _key(form, order)
        with self._lock:
            future = self._cache.get(key)
            if future is None:
                future = self._cache[key] = Future()
                future.set_running_or_notify_cancel()
                while len(self._cache) > _MAX_CACHED:
                    self._cache.popitem(last=False)
                self._fast.submit(self._try, form, key, future, list(order), [], False)
            else:
                self._cache.move_to_end(key)
            return future

    @property
    def vocabulary(self) -> Vocabulary:
        """Raises InvalidRequest."""
        with self._setup:
            if self._vocabulary is None:
                self._vocabulary = self._open_vocabulary()
            return self._vocabulary

    def shutdown(self) -> None:
        self._fast.shutdown(wait=False, cancel_futures=True)
        self._slow.shutdown(wait=False, cancel_futures=True)
        for backend in self._backends.values():
            if callable(close := getattr(backend, "close", None)):
                close()

    def _try(
        self,
        form: StructuredOutputsParams,
        key: bytes,
        future: Future[Compiled],
        left: list[str],
        reasons: list[str],
        may_wait: bool,
    ) -> None:
        """Asks the backends that are left, in order. Goes on in a thread that may wait for those that take long."""
        try:
            while left:
                name = left[0]
                if not may_wait and not (name == "llguidance" and is_plain(form)):
                    self._slow.submit(self._try, form, key, future, left, reasons, True)
                    return
                left = left[1:]
                try:
                    compiled = self._compile_with(name, form)
                except Unsupported as reason:
                    reasons.append(f"{name}: {reason}")
                    continue
                if reasons:
                    logger.info("%s is compiled by %s: %s", form.field, name, "; ".join(reasons))
                future.set_result(compiled)
                return
            raise InvalidRequest(f"{form.field} cannot be honoured as a whole: {'; '.join(reasons)}", form.field)
        except InvalidRequest as error:
            future.set_exception(error)
        except ValueError as error:
            future.set_exception(InvalidRequest(f"{form.field} cannot be compiled: {error}", form.field))
        except Exception as error:
            logger.exception("a grammar could not be compiled")
            future.set_exception(
                InvalidRequest(f"{form.field} could not be compiled: {type(error).__name__}: {error}", form.field)
            )
            with self._lock:
                self._cache.pop(key, None)

    def _compile_with(self, name: str, form: StructuredOutputsParams) -> Compiled:
        backend = self._backend(name)
        grammar = backend.compile(form)
        bitmask = np.zeros((1, self.vocabulary.num_words), dtype=np.int32)
        try:
            grammar.matcher().fill(bitmask, 0)  # what it costs to begin is paid here, and not by the loop
        except MatcherFailed as error:
            raise ValueError(str(error)) from None
        if not bitmask.any():
            raise ValueError("no text of this model's tokens has this form")
        return Compiled(grammar, backend)

    def _backend(self, name: str) -> Backend:
        """Raises Unsupported where its library is absent."""
        vocabulary = self.vocabulary
        with self._setup:
            known = self._backends.get(name)
            if known is None:
                try:
                    known = resolve_name(_HOMES[name])(vocabulary, self._num_threads)
                except ImportError as error:
                    known = f"{_PACKAGES.get(name, name)} is not installed (pip install 'octavo[grammars]'): {error}"
                self._backends[name] = known  # type: ignore[assignment]
        if isinstance(known, str):
            raise Unsupported(known)
        return known  # type: ignore[return-value]


def _key(form: StructuredOutputsParams, order: Sequence[str]) -> bytes:
    """What a form says, without who says it."""
    said = msgspec.structs.replace(form, thinking=None, source=None, backend=None)
    return msgspec.msgpack.encode((said, order))
