"""How a request wants its tokens chosen: validated once, at the edge. vLLM's names, defaults and limits."""

from __future__ import annotations

import difflib
import enum
import logging
import math
import numbers
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from octavo.core.structured import StructuredOutputsParams
from octavo.errors import InvalidParameter, InvalidRequest

logger = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5  # temperatures under this mean "the most likely token"
MIN_TEMPERATURE = 0.01  # smaller ones overflow the scaled logits
REPETITION_PENALTIES = (1e-6, 1e6)  # further off, logits times it overflow
MAX_COMPLETIONS = 16384
INT64 = 2**63

# Keys of a generation_config.json that become defaults, and the field each one sets.
GENERATION_CONFIG_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


class RequestOutputKind(enum.Enum):
    """What each output of a running request holds. The integers are the wire form."""

    CUMULATIVE = 0  # everything so far
    DELTA = 1  # what is new
    FINAL_ONLY = 2  # nothing until the end, then everything


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How to choose the tokens of one request, and when to stop.

    Construction checks and normalises every field (`InvalidParameter` names field, value and limit). Afterwards `stop`
    and `stop_token_ids` are lists and numbers have their declared types. Whoever changes a field later calls
    `validate_for`, which checks everything again.
    """

    n: int = 1  # completions of one prompt
    presence_penalty: float = 0.0  # subtracted from the logit of every token already in the output
    frequency_penalty: float = 0.0  # the same, times the number of its occurrences in the output
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of tokens in prompt or output
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # keep the smallest set of tokens with this much probability; 1 is off
    top_k: int = 0  # keep this many; 0 (or -1) is off
    min_p: float = 0.0  # drop tokens less likely than this share of the most likely; 0 is off
    seed: int | None = None  # None (or -1): unpredictable
    stop: str | list[str] | None = None  # strings that end the output
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16  # None: as many as the model's length allows
    min_tokens: int = 0  # no end-of-sequence or stop token before this many
    logprobs: int | None = None  # the top N beside the sampled token's; -1 is the whole vocabulary
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None  # the form that the output must have

    def __post_init__(self) -> None:
        self._check_distribution()
        self._check_lengths()
        self._check_stops()
        self._check_output()
        if self.is_greedy:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0
            if self.n > 1:
                raise InvalidParameter("n", self.n, "1 when sampling is greedy (temperature 0)")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SamplingParams:
        """From decoded JSON. None means the default, except for `max_tokens`. Unknown names are refused."""
        if not isinstance(fields, Mapping):
            raise InvalidRequest(f"sampling parameters must be an object, got {type(fields).__name__}")
        for name in fields:
            if name not in cls.__struct_fields__:
                _refuse_unknown(name, cls.__struct_fields__)
        given = {name: value for name, value in fields.items() if value is not None or name == "max_tokens"}
        if isinstance(given.get("structured_outputs"), Mapping):
            given["structured_outputs"] = StructuredOutputsParams.from_dict(given["structured_outputs"])
        return cls(**given)

    @classmethod
    def from_generation_config(cls, generation_config: Mapping[str, Any], **overrides: Any) -> SamplingParams:
        """The model's own defaults (its generation_config.json), with `overrides` before them.

        As in vLLM, `do_sample` is not looked at: whoever wants greedy output says temperature=0.
        """
        fields = {
            field: generation_config[key]
            for key, field in GENERATION_CONFIG_FIELDS.items()
            if generation_config.get(key) is not None and field not in overrides
        }
        try:
            cls(**fields)
        except InvalidParameter as error:
            raise InvalidRequest(f"in the model's generation_config: {error}", error.field) from error
        return cls.from_dict({**fields, **overrides})

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> list[str]:
        """`stop` in its normal form."""
        return self.stop if isinstance(self.stop, list) else [self.stop] if self.stop else []

    def validate_for(self, vocab_size: int, max_logprobs: int) -> None:
        """Checks that need the model. `max_logprobs` -1 allows up to the whole vocabulary."""
        self.__post_init__()
        outside = [token_id for token_id in self.stop_token_ids or () if token_id >= vocab_size]
        if outside:
            raise InvalidParameter("stop_token_ids", outside, f"below the vocabulary size {vocab_size}")
        if self.logprobs is not None:
            limit = vocab_size if max_logprobs == -1 else max_logprobs
            if self.logprobs == -1 and vocab_size > limit:
                reason = f"max_logprobs; -1 asks for the whole vocabulary, {vocab_size}"
                raise InvalidParameter("logprobs", self.logprobs, f"at most {limit} ({reason})")
            if self.logprobs > limit:
                raise InvalidParameter("logprobs", self.logprobs, f"at most {limit} (max_logprobs)")

    def _check_distribution(self) -> None:
        self.presence_penalty = _number_between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        self.frequency_penalty = _number_between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        low, high = REPETITION_PENALTIES
        self.repetition_penalty = _number_between("repetition_penalty", self.repetition_penalty, low, high)
        self.temperature = _number("temperature", self.temperature)
        if self.temperature < 0.0:
            raise InvalidParameter("temperature", self.temperature, "at least 0")
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            logger.warning(
                "temperature %s raised to %s, below which logits overflow", self.temperature, MIN_TEMPERATURE
            )
            self.temperature = MIN_TEMPERATURE
        self.top_p = _number("top_p", self.top_p)
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidParameter("top_p", self.top_p, "greater than 0 and at most 1")
        self.top_k = _integer("top_k", self.top_k)
        if self.top_k < -1:
            raise InvalidParameter("top_k", self.top_k, "0 (off) or at least 1")
        self.top_k = max(self.top_k, 0)
        self.min_p = _number_between("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            self.seed = _integer("seed", self.seed)
            if self.seed == -1:
                self.seed = None

    def _check_lengths(self) -> None:
        self.n = _integer("n", self.n)
        if not 1 <= self.n <= MAX_COMPLETIONS:
            raise InvalidParameter("n", self.n, f"from 1 to {MAX_COMPLETIONS}")
        if self.max_tokens is not None:
            self.max_tokens = _integer("max_tokens", self.max_tokens)
            if self.max_tokens < 1:
                raise InvalidParameter("max_tokens", self.max_tokens, "at least 1")
        self.min_tokens = _integer("min_tokens", self.min_tokens)
        if self.min_tokens < 0:
            raise InvalidParameter("min_tokens", self.min_tokens, "at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidParameter("min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")

    def _check_stops(self) -> None:
        self.stop = (
            [self.stop] if isinstance(self.stop, str) else _items("stop", self.stop, "a string or a list of them")
        )
        for text in self.stop:
            if not isinstance(text, str):
                raise InvalidParameter("stop", text, "a string or a list of them")
            if not text:
                raise InvalidParameter("stop", self.stop, "free of empty strings")
        token_ids = _items("stop_token_ids", self.stop_token_ids, "a list of integers")
        token_ids = [_integer("stop_token_ids", token_id, "a list of integers") for token_id in token_ids]
        if any(token_id < 0 for token_id in token_ids):
            raise InvalidParameter("stop_token_ids", token_ids, "free of negative ids")
        self.stop_token_ids = list(dict.fromkeys(token_ids))

    def _check_output(self) -> None:
        for name in (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "include_stop_str_in_output",
        ):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InvalidParameter(name, value, "true or false")
        if self.logprobs is True:
            self.logprobs = 1
        if self.logprobs is not None:
            self.logprobs = _integer("logprobs", self.logprobs)
            if self.logprobs < -1:
                raise InvalidParameter("logprobs", self.logprobs, "at least 0, or -1 for the whole vocabulary")
        if self.stop and not self.detokenize:
            raise InvalidParameter("stop", self.stop, "empty when detokenize is false: stop strings are found in text")
        if not isinstance(self.output_kind, RequestOutputKind):
            try:
                self.output_kind = RequestOutputKind(_integer("output_kind", self.output_kind))
            except ValueError:
                limit = "0 (cumulative), 1 (delta) or 2 (final only)"
                raise InvalidParameter("output_kind", self.output_kind, limit) from None
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise InvalidParameter("structured_outputs", self.structured_outputs, "a StructuredOutputsParams")


def _number(field: str, value: object) -> float:
    """A finite float from any real number; booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidParameter(field, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        raise InvalidParameter(field, "a number too large for a float", "a finite number") from None
    if not math.isfinite(number):
        raise InvalidParameter(field, value, "a finite number")
    return number


def _number_between(field: str, value: object, low: float, high: float) -> float:
    number = _number(field, value)
    if not low <= number <= high:
        raise InvalidParameter(field, value, f"from {low:g} to {high:g}")
    return number


def _integer(field: str, value: object, kind: str = "an integer") -> int:
    """An int that fits 64 bits, so that it can travel and lie in a tensor; booleans are not integers."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidParameter(field, value, kind)
    number = int(value)
    if not -INT64 <= number < INT64:
        raise InvalidParameter(field, f"an integer of {number.bit_length()} bits", f"{kind} within 64 bits")
    return number


def _items(field: str, value: object, kind: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidParameter(field, value, kind)
    return list(value)


def _refuse_unknown(name: object, known: tuple[str, ...]) -> NoReturn:
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
    raise InvalidRequest(f"{name!r} is not a sampling parameter: {hint}", str(name))
