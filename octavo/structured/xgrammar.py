"""xgrammar: pushdown automata with masks precomputed for the states that do not depend on the stack."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xgrammar

from octavo.core.structured import StructuredOutputsParams
from octavo.structured.child import CompilerChild
from octavo.structured.grammar import Unsupported
from octavo.structured.schema import refuse_keywords, refuse_regex, refuse_siblings, schema_of
from octavo.structured.vocabulary import Vocabulary

COMPILE_SECONDS = 10.0
_KEYWORDS = frozenset(
    [
        *("$ref", "anyOf", "const", "enum", "type", "format", "pattern"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        *("items", "prefixItems", "minItems", "maxItems"),
        *("properties", "additionalProperties", "required"),
    ]
)
_FORMATS = frozenset(["email", "uuid"])


class XgrammarMatcher:
    """`tail` are the bits of the last word of a mask that stand for tokens; the others come set."""

    def __init__(self, inner: xgrammar.GrammarMatcher, tail: np.int32) -> None:
        self._inner, self._tail = inner, tail

    def fill(self, bitmask: np.ndarray, row: int) -> None:
        self._inner.fill_next_token_bitmask(bitmask, row)
        bitmask[row, -1] &= self._tail

    def accept(self, token_ids: Sequence[int]) -> bool:
        return all(self._inner.accept_token(token_id) for token_id in token_ids)

    def validate(self, token_ids: Sequence[int]) -> int:
        count = 0
        while count < len(token_ids) and self._inner.accept_token(token_ids[count]):
            count += 1
        if count:
            self._inner.rollback(count)
        return count

    def rollback(self, num_tokens: int) -> None:
        self._inner.rollback(num_tokens)


class XgrammarGrammar:
    def __init__(self, compiled: xgrammar.CompiledGrammar, tail: np.int32) -> None:
        self._compiled, self._tail = compiled, tail

    def matcher(self) -> XgrammarMatcher:
        return XgrammarMatcher(xgrammar.GrammarMatcher(self._compiled), self._tail)


class XgrammarBackend:
    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary, num_threads: int = 1) -> None:
        self._info = tokenizer_info(vocabulary)
        rest = vocabulary.size % 32
        self._tail = np.int32((1 << rest) - 1 if rest else -1)
        self._child = CompilerChild("octavo.structured.xgrammar:XgrammarCompiler", vocabulary, COMPILE_SECONDS)

    def compile(self, form: StructuredOutputsParams) -> XgrammarGrammar:
        check(form)
        data = self._child.compile(form).decode()
        return XgrammarGrammar(xgrammar.CompiledGrammar.deserialize_json(data, self._info), self._tail)

    def close(self) -> None:
        self._child.close()


class XgrammarCompiler:
    """In the child."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._compiler = xgrammar.GrammarCompiler(tokenizer_info(vocabulary), max_threads=1, cache_enabled=False)

    def compile(self, form: StructuredOutputsParams) -> bytes:
        compiler = self._compiler
        match form.kind:
            case "json" | "json_object":
                compiled = compiler.compile_json_schema(
                    json.dumps(schema_of(form)), any_whitespace=not form.disable_any_whitespace, strict_mode=False
                )
            case "regex":
                compiled = compiler.compile_regex(form.value)
            case "choice":
                compiled = compiler.compile_grammar(f"root ::= {' | '.join(map(_quoted, form.value))}")
            case "grammar":
                compiled = compiler.compile_grammar(form.value)
            case _:
                compiled = compiler.compile_structural_tag(json.dumps(_tag_of(form.value)))
        return compiled.serialize_json().encode()


def tokenizer_info(vocabulary: Vocabulary) -> xgrammar.TokenizerInfo:
    return xgrammar.TokenizerInfo(
        vocabulary.text_pieces,
        xgrammar.VocabType.RAW,
        vocab_size=vocabulary.size,
        stop_token_ids=list(vocabulary.eos_token_ids),
    )


def check(form: StructuredOutputsParams) -> None:
    """Raises Unsupported for what xgrammar would pass over without a word."""
    if form.whitespace_pattern is not None:
        raise Unsupported("whitespace_pattern")
    match form.kind:
        case "json" | "json_object":
            check_schema(schema_of(form))
        case "regex":
            refuse_regex(form.value)
        case "grammar" if "::=" not in form.value:
            raise Unsupported("a grammar in Lark: it takes EBNF, with ::=")


def check_schema(schema: object) -> None:
    refuse_keywords(schema, _KEYWORDS)
    refuse_siblings(schema, _FORMATS)


def _tag_of(value: dict[str, object]) -> dict[str, object]:
    """The older way to write a structural tag, as the one there is now."""
    structures = value.get("structures")
    if not isinstance(structures, list):
        return value
    tags = [
        {
            "begin": entry.get("begin"),
            "content": {"type": "json_schema", "json_schema": entry.get("schema", True)},
            "end": entry.get("end", ""),
        }
        for entry in structures
    ]
    return {
        "type": "structural_tag",
        "format": {"type": "triggered_tags", "triggers": value.get("triggers"), "tags": tags},
    }


def _quoted(text: str) -> str:
    """An EBNF literal, of which every character is escaped that could mean something."""
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in text) + '"'
