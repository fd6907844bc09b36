"""How a request wants its tokens chosen: validated once, at the edge. vLLM's names, defaults and limits."""

from __future__ import annotations

import difflib
import enum
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn

import msgspec

from octavo.core.checks import (
    as_integer,
    as_integer_from,
    as_items,
    as_number,
    as_number_between,
    as_token_ids,
    check_inside,
)
from octavo.core.structured import StructuredOutputsParams, Thinking
from octavo.errors import InvalidParameter, InvalidRequest

logger = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5  # temperatures under this mean "the most likely token"
MIN_TEMPERATURE = 0.01  # smaller ones overflow the scaled logits
REPETITION_PENALTIES = (1e-6, 1e6)  # further off, logits times it overflow
MAX_COMPLETIONS = 16384
MAX_LOGPROB_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 100.0  # a bias further off is brought to this
MAX_BAD_WORDS = 1024

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
LOGPROBS_MODES: tuple[LogprobsMode, ...] = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")

# What would need beams to carry state from step to step that only their request has.
BEAMS_EXCLUDE = (
    "logits_processors",
    "structured_outputs",
    "thinking_token_budget",
    "repetition_detection",
    "trace_decode_token_ids",
    "logprob_token_ids",
    "stop",
    "min_tokens",
    "prompt_logprobs",
    "prompt_logprob_token_ids",
)

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


class RepetitionDetection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ends an output whose last tokens are a pattern of `min_pattern_size` to `max_pattern_size` tokens, `min_count`
    times over. vLLM's RepetitionDetectionParams; a `max_pattern_size` of 0 is off."""

    max_pattern_size: int = 0
    min_pattern_size: int = 0  # 0 is 1
    min_count: int = 0

    def __post_init__(self) -> None:
        field = "repetition_detection"
        for name in ("max_pattern_size", "min_pattern_size", "min_count"):
            as_integer_from(f"{field}.{name}", getattr(self, name), 0)
        if self.min_pattern_size > self.max_pattern_size:
            limit = f"at most max_pattern_size={self.max_pattern_size}"
            raise InvalidParameter(f"{field}.min_pattern_size", self.min_pattern_size, limit)
        if self.max_pattern_size and self.min_count < 2:
            raise InvalidParameter(f"{field}.min_count", self.min_count, "at least 2")


class ProcessorCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A logits processor that was registered by name with the engine, and the arguments to make it with."""

    name: str
    arguments: dict[str, Any] = {}


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How to choose the tokens of one request, and when to stop.

    Construction checks and normalises every field (`InvalidParameter` names field, value and limit). Afterwards `stop`
    and `stop_token_ids` are lists and numbers have their declared types. Whoever changes a field later calls
    `validate_for`, which checks everything again.
    """

    n: int = 1  # completions of one prompt
    best_of: int | None = None  # make so many, return the n with the greatest cumulative_logprob; None: n
    presence_penalty: float = 0.0  # subtracted from the logit of every token already in the output
    frequency_penalty: float = 0.0  # the same, times the number of its occurrences in the output
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of tokens in prompt or output
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # keep the smallest set of tokens with this much probability; 1 is off
    top_k: int = 0  # keep this many; 0 (or -1) is off
    min_p: float = 0.0  # drop tokens less likely than this share of the most likely; 0 is off
    logit_bias: dict[int, float] | None = None  # added to the logits of these tokens, -100 to 100
    allowed_token_ids: list[int] | None = None  # no others
    bad_words: list[str] | None = None  # texts that no output has: the token that would complete one is ruled out
    bad_words_token_ids: list[list[int]] | None = None  # the same as tokens; made from bad_words where a tokenizer is
    logits_processors: list[Any] | None = None  # callables, or ProcessorCall; see sampling/processors.py
    extra_args: dict[str, Any] | None = None  # for the engine's own logits processors
    seed: int | None = None  # None (or -1): unpredictable
    stop: str | list[str] | None = None  # strings that end the output
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16  # None: as many as the model's length allows
    min_tokens: int = 0  # no end-of-sequence or stop token before this many
    logprobs: int | None = None  # the top N beside the sampled token's; -1 is the whole vocabulary
    prompt_logprobs: int | None = None  # the same of the prompt's tokens
    logprob_token_ids: list[int] | None = None  # of these tokens, at each output position
    prompt_logprob_token_ids: list[Any] | None = None  # of these ids at each prompt position, or a list for each
    prompt_logprob_start: int = 0  # prompt_logprob_token_ids are scored for the tokens after this position
    logprobs_mode: LogprobsMode | None = None  # what logprobs are; None: the engine's
    flat_logprobs: bool = False  # few large lists in place of many small dictionaries
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None  # tokens in each output of a running request but the first; None: the engine's
    structured_outputs: StructuredOutputsParams | None = None  # the form that the output must have
    thinking_token_budget: int | None = None  # thoughts of so many tokens are brought to their end; -1 is no limit
    thinking: Thinking | None = None  # how thoughts begin and end, for the budget; set by the engine's reasoning parser
    repetition_detection: RepetitionDetection | None = None
    truncate_prompt_tokens: int | None = None  # keep so many of a longer prompt; -1: as many as the model can take
    truncation_side: Literal["left", "right"] = "left"  # which end of the prompt is given up
    skip_reading_prefix_cache: bool | None = None
    use_beam_search: bool = False  # the n likeliest outputs found with best_of (or n) beams
    length_penalty: float = 1.0  # beams are ranked by cumulative_logprob / length ** this
    early_stopping: bool = False  # of beam search: end with the first n finished beams
    trace_decode_token_ids: list[int] | None = None  # how the output begins, whatever the model thinks; its logprobs
    watermarking: None = None  # vLLM's; not to be had here
    routed_experts_prompt_start: int = 0  # vLLM's, of mixture-of-experts models; only 0 can be had here
    skip_clone: bool = False  # vLLM's; nothing is cloned here, so it changes nothing

    def __post_init__(self) -> None:
        self._check_distribution()
        self._check_lengths()
        self._check_stops()
        self._check_tokens()
        self._check_output()
        self._check_logprobs()
        self._check_search()
        if self.is_greedy:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0
            if self.num_candidates > 1 and not self.use_beam_search:
                field = "n" if self.n > 1 else "best_of"
                raise InvalidParameter(field, self.num_candidates, "1 when sampling is greedy (temperature 0)")

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
        if isinstance(given.get("repetition_detection"), Mapping):
            given["repetition_detection"] = _repetition_detection(given["repetition_detection"])
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

    @property
    def num_candidates(self) -> int:
        """Completions that are made; the best n of them are returned."""
        return self.n if self.best_of is None else self.best_of

    def validate_for(self, vocab_size: int, max_logprobs: int) -> None:
        """Checks that need the model. `max_logprobs` -1 allows up to the whole vocabulary."""
        self.__post_init__()
        for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids", "trace_decode_token_ids"):
            check_inside(name, getattr(self, name) or [], vocab_size)
        check_inside("logit_bias", list(self.logit_bias or ()), vocab_size)
        for token_ids in self.bad_words_token_ids or ():
            check_inside("bad_words_token_ids", token_ids, vocab_size)
        for token_ids in self.prompt_logprob_rows(1):
            check_inside("prompt_logprob_token_ids", token_ids, vocab_size)
        limit = vocab_size if max_logprobs == -1 else max_logprobs
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            if asked == -1 and vocab_size > limit:
                reason = f"max_logprobs; -1 asks for the whole vocabulary, {vocab_size}"
                raise InvalidParameter(name, asked, f"at most {limit} ({reason})")
            if asked is not None and asked > limit:
                raise InvalidParameter(name, asked, f"at most {limit} (max_logprobs)")

    def prompt_logprob_rows(self, num_rows: int) -> list[list[int]]:
        """`prompt_logprob_token_ids` for each of `num_rows` scored positions; more, if it names more. Empty if none."""
        token_ids: list[Any] = self.prompt_logprob_token_ids or []
        if token_ids and not isinstance(token_ids[0], list):
            return [token_ids] * num_rows
        return token_ids

    def _check_distribution(self) -> None:
        self.presence_penalty = as_number_between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        self.frequency_penalty = as_number_between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        low, high = REPETITION_PENALTIES
        self.repetition_penalty = as_number_between("repetition_penalty", self.repetition_penalty, low, high)
        self.temperature = as_number("temperature", self.temperature)
        if self.temperature < 0.0:
            raise InvalidParameter("temperature", self.temperature, "at least 0")
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            logger.warning(
                "temperature %s raised to %s, below which logits overflow", self.temperature, MIN_TEMPERATURE
            )
            self.temperature = MIN_TEMPERATURE
        self.top_p = as_number("top_p", self.top_p)
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidParameter("top_p", self.top_p, "greater than 0 and at most 1")
        self.top_k = as_integer("top_k", self.top_k)
        if self.top_k < -1:
            raise InvalidParameter("top_k", self.top_k, "0 (off) or at least 1")
        self.top_k = max(self.top_k, 0)
        self.min_p = as_number_between("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            self.seed = as_integer("seed", self.seed)
            if self.seed == -1:
                self.seed = None

    def _check_lengths(self) -> None:
        self.n = as_integer("n", self.n)
        if not 1 <= self.n <= MAX_COMPLETIONS:
            raise InvalidParameter("n", self.n, f"from 1 to {MAX_COMPLETIONS}")
        if self.max_tokens is not None:
            self.max_tokens = as_integer("max_tokens", self.max_tokens)
            if self.max_tokens < 1:
                raise InvalidParameter("max_tokens", self.max_tokens, "at least 1")
        self.min_tokens = as_integer("min_tokens", self.min_tokens)
        if self.min_tokens < 0:
            raise InvalidParameter("min_tokens", self.min_tokens, "at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidParameter("min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")

    def _check_stops(self) -> None:
        self.stop = (
            [self.stop] if isinstance(self.stop, str) else as_items("stop", self.stop, "a string or a list of them")
        )
        for text in self.stop:
            if not isinstance(text, str):
                raise InvalidParameter("stop", text, "a string or a list of them")
            if not text:
                raise InvalidParameter("stop", self.stop, "free of empty strings")
        self.stop_token_ids = as_token_ids("stop_token_ids", self.stop_token_ids)
        detection = self.repetition_detection
        if detection is not None and not isinstance(detection, RepetitionDetection):
            raise InvalidParameter("repetition_detection", detection, "a RepetitionDetection")

    def _check_tokens(self) -> None:
        """What rules out or prefers single tokens."""
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise InvalidParameter("logit_bias", self.logit_bias, 'an object such as {"50256": -100}')
            self.logit_bias = dict(_biases(self.logit_bias))
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = as_token_ids("allowed_token_ids", self.allowed_token_ids)
            if not self.allowed_token_ids:
                raise InvalidParameter("allowed_token_ids", [], "a list with at least one token id")
        if self.bad_words is not None:
            self.bad_words = as_items("bad_words", self.bad_words, "a list of strings")
            if len(self.bad_words) > MAX_BAD_WORDS:
                raise InvalidParameter("bad_words", f"{len(self.bad_words)} words", f"at most {MAX_BAD_WORDS} of them")
            if any(not isinstance(word, str) or not word.strip() for word in self.bad_words):
                raise InvalidParameter("bad_words", self.bad_words, "a list of strings that are not empty")
        if self.bad_words_token_ids is not None:
            field = "bad_words_token_ids"
            words = as_items(field, self.bad_words_token_ids, "a list of lists of token ids")
            self.bad_words_token_ids = [_sequence(field, word) for word in words]
            if not all(self.bad_words_token_ids):
                raise InvalidParameter(field, self.bad_words_token_ids, "free of empty lists")
        if self.trace_decode_token_ids is not None:
            self.trace_decode_token_ids = _sequence("trace_decode_token_ids", self.trace_decode_token_ids)
            if not self.trace_decode_token_ids:
                raise InvalidParameter("trace_decode_token_ids", [], "a list with at least one token id")
        processors = as_items("logits_processors", self.logits_processors, "a list of callables")
        for i, processor in enumerate(processors):
            if isinstance(processor, Mapping):
                processors[i] = processor = _processor_call(processor)
            if not callable(processor) and not isinstance(processor, ProcessorCall):
                raise InvalidParameter(f"logits_processors[{i}]", processor, "a callable, or a registered one by name")
        self.logits_processors = processors or None
        if self.extra_args is not None and not isinstance(self.extra_args, Mapping):
            raise InvalidParameter("extra_args", self.extra_args, "an object")

    def _check_logprobs(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is True:
                value = 1
            if value is not None:
                value = as_integer(name, value)
                if value < -1:
                    raise InvalidParameter(name, value, "at least 0, or -1 for the whole vocabulary")
            setattr(self, name, value)
        if self.logprob_token_ids is not None:
            self.logprob_token_ids = as_token_ids("logprob_token_ids", self.logprob_token_ids)
            if len(self.logprob_token_ids) > MAX_LOGPROB_TOKEN_IDS:
                limit = f"at most {MAX_LOGPROB_TOKEN_IDS} of them"
                raise InvalidParameter("logprob_token_ids", f"{len(self.logprob_token_ids)} ids", limit)
        if self.logprobs_mode is not None and self.logprobs_mode not in LOGPROBS_MODES:
            raise InvalidParameter("logprobs_mode", self.logprobs_mode, f"one of {', '.join(LOGPROBS_MODES)}")
        self.prompt_logprob_start = as_integer_from("prompt_logprob_start", self.prompt_logprob_start, 0)
        if self.prompt_logprob_token_ids is not None:
            field = "prompt_logprob_token_ids"
            rows = as_items(field, self.prompt_logprob_token_ids, "a list of token ids, or one for each scored row")
            if rows and isinstance(rows[0], list | tuple):
                self.prompt_logprob_token_ids = [_sequence(field, row) for row in rows]
                if len(set(map(len, self.prompt_logprob_token_ids))) != 1:
                    raise InvalidRequest(f"{field} must have equally many ids in each row", field)
            else:
                self.prompt_logprob_token_ids = _sequence(field, rows)
            if not rows:
                raise InvalidParameter(field, rows, "a list with at least one token id")

    def _check_search(self) -> None:
        if self.best_of is not None:
            self.best_of = as_integer("best_of", self.best_of)
            if not self.n <= self.best_of <= MAX_COMPLETIONS:
                raise InvalidParameter("best_of", self.best_of, f"from n={self.n} to {MAX_COMPLETIONS}")
            if self.best_of > self.n and self.output_kind is RequestOutputKind.DELTA:
                raise InvalidRequest("best_of over n cannot be streamed: which are best is known at the end", "best_of")
        self.length_penalty = as_number("length_penalty", self.length_penalty)
        if self.length_penalty != 1.0 and not self.use_beam_search:
            raise InvalidRequest("length_penalty has a meaning only with use_beam_search", "length_penalty")
        if self.early_stopping and not self.use_beam_search:
            raise InvalidRequest("early_stopping has a meaning only with use_beam_search", "early_stopping")
        if self.use_beam_search:
            for name in BEAMS_EXCLUDE:
                if getattr(self, name) not in (None, [], 0) or (
                    name == "prompt_logprobs" and self.prompt_logprobs == 0
                ):
                    raise InvalidRequest(f"{name} cannot be combined with use_beam_search", name)
            if self.output_kind is RequestOutputKind.DELTA:
                raise InvalidRequest(
                    "beam search cannot be streamed: what is best is known at the end", "use_beam_search"
                )

    def _check_output(self) -> None:
        for name in (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "include_stop_str_in_output",
            "flat_logprobs",
            "use_beam_search",
            "early_stopping",
            "skip_clone",
        ):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InvalidParameter(name, value, "true or false")
        if self.stop and not self.detokenize:
            raise InvalidParameter("stop", self.stop, "empty when detokenize is false: stop strings are found in text")
        if not isinstance(self.output_kind, RequestOutputKind):
            try:
                self.output_kind = RequestOutputKind(as_integer("output_kind", self.output_kind))
            except ValueError:
                limit = "0 (cumulative), 1 (delta) or 2 (final only)"
                raise InvalidParameter("output_kind", self.output_kind, limit) from None
        if self.stream_interval is not None:
            self.stream_interval = as_integer_from("stream_interval", self.stream_interval, 1)
        if self.truncate_prompt_tokens is not None:
            tokens = as_integer("truncate_prompt_tokens", self.truncate_prompt_tokens)
            if tokens < 1 and tokens != -1:
                raise InvalidParameter(
                    "truncate_prompt_tokens", tokens, "at least 1, or -1 for what the model can take"
                )
            self.truncate_prompt_tokens = tokens
        if self.truncation_side not in ("left", "right"):
            raise InvalidParameter("truncation_side", self.truncation_side, "left or right")
        if self.skip_reading_prefix_cache not in (None, True, False):
            raise InvalidParameter("skip_reading_prefix_cache", self.skip_reading_prefix_cache, "true or false")
        if self.thinking_token_budget is not None:
            budget = as_integer_from("thinking_token_budget", self.thinking_token_budget, -1, " (-1: no limit)")
            self.thinking_token_budget = None if budget == -1 else budget
        if self.thinking is not None and not isinstance(self.thinking, Thinking):
            raise InvalidParameter("thinking", self.thinking, "a Thinking")
        if self.watermarking is not None:
            raise InvalidParameter("watermarking", self.watermarking, "null: octavo has no watermarks")
        if self.routed_experts_prompt_start != 0:
            limit = "0: no model here routes to experts"
            raise InvalidParameter("routed_experts_prompt_start", self.routed_experts_prompt_start, limit)
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise InvalidParameter("structured_outputs", self.structured_outputs, "a StructuredOutputsParams")


def _refuse_unknown(name: object, known: tuple[str, ...]) -> NoReturn:
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
    raise InvalidRequest(f"{name!r} is not a sampling parameter: {hint}", str(name))


class BeamSearchParams(msgspec.Struct, kw_only=True):
    """What `LLM.beam_search` takes: vLLM's fields. Within `SamplingParams` it is use_beam_search, n, best_of,
    length_penalty and early_stopping."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0  # beams are ranked by the model's own probabilities, whatever this says
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool = False
    logprobs: int | None = None

    def as_sampling_params(self) -> SamplingParams:
        """Raises InvalidParameter."""
        return SamplingParams(
            n=as_integer_from("beam_width", self.beam_width, 1),
            use_beam_search=True,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            include_stop_str_in_output=self.include_stop_str_in_output,
            logprobs=self.logprobs,
        )


def _biases(given: Mapping[Any, Any]) -> Iterator[tuple[int, float]]:
    """JSON has its keys as text."""
    for token_id, bias in given.items():
        if isinstance(token_id, str):
            if not token_id.isascii() or not token_id.isdigit():
                raise InvalidParameter("logit_bias", token_id, "an object whose keys are token ids")
            token_id = int(token_id)
        token_id = as_integer_from("logit_bias", token_id, 0)
        number = as_number(f"logit_bias[{token_id}]", bias)
        yield token_id, min(MAX_LOGIT_BIAS, max(-MAX_LOGIT_BIAS, number))


def _sequence(field: str, value: object) -> list[int]:
    """Token ids in their order, repeated ones too."""
    token_ids = [as_integer(field, token_id) for token_id in as_items(field, value, "a list of token ids")]
    if any(token_id < 0 for token_id in token_ids):
        raise InvalidParameter(field, token_ids, "free of negative ids")
    return token_ids


def _repetition_detection(fields: Mapping[str, Any]) -> RepetitionDetection:
    for name in fields:
        if name not in RepetitionDetection.__struct_fields__:
            known = ", ".join(RepetitionDetection.__struct_fields__)
            raise InvalidRequest(
                f"repetition_detection has no field {name!r}; known are {known}", "repetition_detection"
            )
    return RepetitionDetection(**{name: value for name, value in fields.items() if value is not None})


def _processor_call(fields: Mapping[str, Any]) -> ProcessorCall:
    for field in fields:
        if field not in ProcessorCall.__struct_fields__:
            raise InvalidRequest(f"a logits processor has a name and arguments, not {field!r}", "logits_processors")
    name, arguments = fields.get("name"), fields.get("arguments")
    if not isinstance(name, str) or not name:
        raise InvalidParameter("logits_processors.name", name, "the name of a registered logits processor")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise InvalidParameter("logits_processors.arguments", arguments, "an object")
    return ProcessorCall(name, dict(arguments or {}))
