"""outlines-core: a form becomes one regex, and that an index of the tokens which each state of its automaton allows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import outlines_core

from octavo.core.json_schema import subschemas
from octavo.core.structured import StructuredOutputsParams
from octavo.structured.child import CompilerChild
from octavo.structured.grammar import MatcherFailed, Unsupported
from octavo.structured.schema import refuse_keywords, refuse_regex, refuse_siblings, schema_of
from octavo.structured.vocabulary import Vocabulary

COMPILE_SECONDS = 10.0
_MAX_ROLLBACK = 32  # tokens: drafts
_KEYWORDS = frozenset(
    [
        *("anyOf", "const", "enum", "type", "format", "pattern", "minLength", "maxLength"),
        *("items", "minItems", "maxItems"),
        *("properties", "additionalProperties", "required"),
    ]
)
_FORMATS = frozenset(["uuid"])


class OutlinesMatcher:
    def __init__(self, index: outlines_core.Index) -> None:
        self._inner = outlines_core.Guide(index, _MAX_ROLLBACK)

    def fill(self, bitmask: np.ndarray, row: int) -> None:
        words = bitmask[row]
        self._inner.write_mask_into(words.ctypes.data, words.size, words.itemsize)

    def accept(self, token_ids: Sequence[int]) -> bool:
        for token_id in token_ids:
            if not self._inner.accepts_tokens([token_id]):
                return False
            self._inner.advance(token_id, return_tokens=False)
        return True

    def validate(self, token_ids: Sequence[int]) -> int:
        return next(
            (count for count in range(len(token_ids), 0, -1) if self._inner.accepts_tokens(list(token_ids[:count]))), 0
        )

    def rollback(self, num_tokens: int) -> None:
        try:
            self._inner.rollback_state(num_tokens)
        except ValueError as error:
            raise MatcherFailed(str(error)) from None


class OutlinesGrammar:
    def __init__(self, index: outlines_core.Index) -> None:
        self._index = index

    def matcher(self) -> OutlinesMatcher:
        return OutlinesMatcher(self._index)


class OutlinesBackend:
    name = "outlines"

    def __init__(self, vocabulary: Vocabulary, num_threads: int = 1) -> None:
        self._child = CompilerChild("octavo.structured.outlines:OutlinesCompiler", vocabulary, COMPILE_SECONDS)

    def compile(self, form: StructuredOutputsParams) -> OutlinesGrammar:
        check(form)
        return OutlinesGrammar(outlines_core.Index.from_binary(self._child.compile(form)))

    def close(self) -> None:
        self._child.close()


class OutlinesCompiler:
    """In the child."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids: dict[bytes, list[int]] = {}
        for token_id, piece in enumerate(vocabulary.text_pieces):
            if piece:
                ids.setdefault(piece, []).append(token_id)
        self._vocabulary = outlines_core.Vocabulary(vocabulary.eos_token_ids[0], ids)

    def compile(self, form: StructuredOutputsParams) -> bytes:
        match form.kind:
            case "regex":
                regex = form.value
            case "choice":
                regex = "|".join(f"(?:{re.escape(choice)})" for choice in form.value)
            case _:
                white = "" if form.disable_any_whitespace else form.whitespace_pattern
                regex = outlines_core.json_schema.build_regex_from_schema(json.dumps(schema_of(form)), white)
        _, (data,) = outlines_core.Index(regex, self._vocabulary).__reduce__()
        return bytes(data)


_CLASS = re.compile(r"\\[dDwWsS]")  # of Unicode here, of ASCII in JSON schemas


def _refuse_open(schema: Any) -> None:
    """Raises Unsupported for values of any form, whose automaton would be too large, and for what it would write
    without escaping."""
    for where, here in subschemas(schema):
        if not any(keyword in here for keyword in ("type", "enum", "const", "anyOf")):
            raise Unsupported(f"a schema that says nothing (at {where})")
        for kind, rule in (("object", "properties"), ("array", "items")):
            if here.get("type") == kind and rule not in here:
                raise Unsupported(f"the type {kind!r} without {rule!r} (at {where})")
        if isinstance(here.get("type"), list):
            raise Unsupported(f"a list as 'type' (at {where})")
        for name in here.get("properties", ()):
            if json.dumps(name, ensure_ascii=False) != f'"{name}"':
                raise Unsupported(f"the property {name!r}, which needs escapes (at {where})")
        if _CLASS.search(here.get("pattern", "")):
            raise Unsupported(f"'pattern' with a class of characters (at {where})")


def check(form: StructuredOutputsParams) -> None:
    """Raises Unsupported for what outlines-core would pass over without a word."""
    match form.kind:
        case "json":
            schema = schema_of(form)
            refuse_keywords(schema, _KEYWORDS)
            refuse_siblings(schema, _FORMATS)
            _refuse_open(schema)
        case "json_object":
            raise Unsupported("json_object: it is no regex")
        case "regex":
            refuse_regex(form.value)
        case "grammar" | "structural_tag":
            raise Unsupported(form.kind)
