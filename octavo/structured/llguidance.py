"""llguidance: an Earley parser over lazily built regex derivatives. Its own limits hold at every step; they do not hold
while it compiles intersections of regular expressions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from octavo.core.json_schema import subschemas
from octavo.core.structured import StructuredOutputsParams
from octavo.structured.child import CompilerChild
from octavo.structured.grammar import Malformed, MatcherFailed, Unsupported
from octavo.structured.schema import is_plain, prepared, refuse_keywords, schema_of
from octavo.structured.structural_tag import Tags, triggered_tags
from octavo.structured.vocabulary import Vocabulary

# Lexer states weigh one or two KB each and go with the grammar; fuel is spent at 14 to 50 thousand a millisecond.
_LIMITS: dict[str, Any] = {
    "max_lexer_states": 20_000,
    "initial_lexer_fuel": 5_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}
_KEYWORDS = frozenset(
    [
        *("$ref", "allOf", "anyOf", "oneOf", "const", "enum", "type", "format", "pattern", "minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
        *("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"),
    ]
)
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
COMPILE_SECONDS = 5.0
_TRIED_TOKENS = 32
_MAX_EXACT = 2**53  # it computes in floating point
_LIMITS_MET = ("ParserTooComplex", "LexerTooComplex", "InternalError")
_MAX_ERROR = 500  # characters


class LlguidanceMatcher:
    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self.inner = inner

    def fill(self, bitmask: np.ndarray, row: int) -> None:
        fill_next_token_bitmask(self.inner, bitmask, row)
        self.check()

    def accept(self, token_ids: Sequence[int]) -> bool:
        if self.inner.try_consume_tokens(list(token_ids)) == len(token_ids):
            return True
        if self.inner.stop_reason() in _LIMITS_MET:
            self.check()
        return False

    def validate(self, token_ids: Sequence[int]) -> int:
        return self.inner.validate_tokens(list(token_ids))

    def rollback(self, num_tokens: int) -> None:
        self.inner.rollback(num_tokens)
        self.check()

    def check(self) -> None:
        if self.inner.is_error():
            raise MatcherFailed(_first_line(self.inner.get_error()))


class LlguidanceGrammar:
    """Matchers are copies of the first, so its lexer is built once."""

    def __init__(self, first: llguidance.LLMatcher) -> None:
        self._first = first

    def matcher(self) -> LlguidanceMatcher:
        return LlguidanceMatcher(self._first.deep_copy())


class LlguidanceBackend:
    name = "llguidance"

    def __init__(self, vocabulary: Vocabulary, num_threads: int = 1, has_child: bool = True) -> None:
        wrapper = llguidance.TokenizerWrapper(_Tokens(vocabulary))
        self._vocabulary = vocabulary
        self._tokenizer = llguidance.LLTokenizer(wrapper, vocabulary.size, list(vocabulary.eos_token_ids))
        self._limits = llguidance.LLParserLimits(**_LIMITS)
        self._special_texts = [
            (vocabulary.pieces[token_id].decode("utf-8", "replace"), token_id)
            for token_id in sorted(vocabulary.special_ids)
            if vocabulary.pieces[token_id]
        ]
        home = "octavo.structured.llguidance:LlguidanceCompiler"
        self._child = CompilerChild(home, vocabulary, COMPILE_SECONDS) if has_child else None
        self._executor = llguidance.LLExecutor(num_threads)

    def compile(self, form: StructuredOutputsParams) -> LlguidanceGrammar:
        """What is not plain is first tried in the child: it may never end."""
        if self._child is not None and not is_plain(form):
            self._child.compile(form)
        return self.compile_here(form)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()

    def compile_here(self, form: StructuredOutputsParams) -> LlguidanceGrammar:
        text = self._grammar_text(form)
        is_error, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
            text, self._tokenizer, limits=self._limits
        )
        if is_error:
            _raise(form, messages[0])
        first = llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        if first.is_error():
            _raise(form, first.get_error())
        return LlguidanceGrammar(first)

    def fill_all(self, matchers: Sequence[tuple[LlguidanceMatcher, int]], bitmask: np.ndarray) -> None:
        """(matcher, row) pairs, in parallel. Whose matcher failed shows in its `check`."""
        fill_next_token_bitmask_par(self._executor, [(matcher.inner, row) for matcher, row in matchers], bitmask)

    def _grammar_text(self, form: StructuredOutputsParams) -> str:
        match form.kind:
            case "json" | "json_object":
                schema = schema_of(form)
                refuse_keywords(schema, _KEYWORDS)
                _refuse_large_bounds(schema)
                options: Any = {"lenient": False, "coerce_one_of": False}
                if form.disable_any_whitespace:
                    options |= {"whitespace_flexible": False}
                if form.whitespace_pattern is not None:
                    options["whitespace_pattern"] = form.whitespace_pattern
                return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)  # type: ignore[arg-type]
            case "regex":
                return llguidance.LLMatcher.grammar_from_regex(form.value)
            case "choice":
                options_text = " | ".join(json.dumps(choice) for choice in form.value)
                return llguidance.LLMatcher.grammar_from_lark(f"start: {options_text}")
            case "grammar":
                return llguidance.LLMatcher.grammar_from_lark(_as_lark(form.value))
            case _:
                tags = triggered_tags(form.value)
                return llguidance.LLMatcher.grammar_from_lark(
                    self._tags_as_lark(tags, form.disable_additional_properties)
                )

    def _tags_as_lark(self, tags: Tags, is_closed: bool) -> str:
        """Free text up to a trigger, then what the tag that begins with it says, then free text again."""
        rules = []
        for i, tag in enumerate(tags.tags):
            trigger = next(text for text in tags.triggers if tag.begin.startswith(text))
            schema = prepared(tag.schema, is_closed)
            refuse_keywords(schema, _KEYWORDS)
            _refuse_large_bounds(schema)
            body = f"{self._literal(tag.begin[len(trigger) :])} %json {json.dumps(schema)} {self._literal(tag.end)}"
            if self._literal(trigger).startswith("<["):
                rules.append(f"tag_{i}: TEXT {self._literal(trigger)} {body}")
            else:
                rules.append(f"tag_{i}_trigger[lazy]: TEXT {_quoted(trigger)}\ntag_{i}: tag_{i}_trigger {body}")
        either = " | ".join(f"tag_{i}" for i in range(len(tags.tags)))
        return "\n".join(["%llguidance {}", f"start: ({either})* end", "end: TEXT", r"TEXT: /(.|\n)*/", *rules])

    def _literal(self, text: str) -> str:
        """Text in Lark; within it special tokens, which are no text, by their ids."""
        parts = []
        while text:
            found = [
                (text.find(special), special, token_id) for special, token_id in self._special_texts if special in text
            ]
            at, special, token_id = min(found, key=lambda entry: (entry[0], -len(entry[1])), default=(len(text), "", 0))
            parts += [_quoted(text[:at])] if at else []
            parts += [f"<[{token_id}]>"] if special else []
            text = text[at + len(special) :]
        return " ".join(parts)


class LlguidanceCompiler:
    """In the child: shows that a form can be compiled, and followed for a while."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._backend = LlguidanceBackend(vocabulary, has_child=False)
        self._vocabulary = vocabulary

    def compile(self, form: StructuredOutputsParams) -> bytes:
        try:
            matcher = self._backend.compile_here(form).matcher()
            bitmask = np.zeros((1, self._vocabulary.num_words), dtype=np.int32)
            chance = np.random.default_rng(0)
            for _ in range(_TRIED_TOKENS):
                matcher.fill(bitmask, 0)
                allowed = np.flatnonzero(np.unpackbits(bitmask.view(np.uint8), bitorder="little"))
                token_id = int(chance.choice(allowed)) if len(allowed) else self._vocabulary.eos_token_ids[0]
                if token_id in self._vocabulary.eos_token_ids or not matcher.accept((token_id,)):
                    break
        except MatcherFailed as error:
            raise Malformed(str(error)) from None
        except Unsupported:
            raise
        except ValueError as error:
            raise Malformed(str(error)) from None
        return b"fine"


class _Tokens:
    """A vocabulary as llguidance wants to see it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self.tokens = vocabulary.pieces
        self.special_token_ids = sorted(vocabulary.special_ids)

    def __call__(self, text: bytes | str) -> list[int]:
        return self._vocabulary.encode(text if isinstance(text, bytes) else text.encode())


def _refuse_large_bounds(schema: Any) -> None:
    for where, here in subschemas(schema):
        for keyword in _BOUNDS if isinstance(here, dict) else ():
            if abs(here.get(keyword, 0)) > _MAX_EXACT:
                raise Unsupported(f"{keyword!r} beyond 2**53 (at {where})")


def _as_lark(text: str) -> str:
    if is_lark_syntax(text):
        return text
    if "::=" not in text:
        raise ValueError("it is neither Lark, with a rule for `start`, nor EBNF, with rules of the form name ::= ...")
    try:
        return gbnf_to_lark(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except Exception as error:  # what the library raises is its own, and not exported
        raise ValueError(str(error)) from error


def _quoted(text: str) -> str:
    return json.dumps(text)


# Beginnings of messages about a schema that is sound, but more than llguidance can do.
_UNSUPPORTED = (
    "Unimplemented keys",
    "oneOf constraints are not supported",
    "Unknown format",
    "min/maxProperties only supported",
)


def _raise(form: StructuredOutputsParams, message: str) -> None:
    text = _first_line(message)
    if text.startswith(_UNSUPPORTED):
        raise Unsupported(text)
    if "not supported" in message and form.kind != "grammar":  # of regexes: look-around, backreferences
        raise Unsupported(" ".join(message.split())[-_MAX_ERROR:])
    raise ValueError(text)


def _first_line(message: str) -> str:
    """Without the parser's state, which follows."""
    text = " ".join(message.split("<state>")[0].replace("<non-verbose/>", "").split())
    return _STOPS.get(text, text)[:_MAX_ERROR] or "it cannot go on"


_STOPS = {
    "NoExtension": "no text has this form",
    "NoExtensionBias": "no text has this form",
    "LexerTooComplex": "its regular expressions take too much to follow",
    "ParserTooComplex": "it takes too much to follow",
}
