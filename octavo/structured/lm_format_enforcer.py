"""lm-format-enforcer: parsers of characters, walked together with a tree of the tokens. In Python, and slow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import lmformatenforcer
import numpy as np
from lmformatenforcer.characterlevelparser import CharacterLevelParserConfig, UnionParser
from lmformatenforcer.exceptions import LMFormatEnforcerException

from octavo.core.json_schema import subschemas
from octavo.core.structured import StructuredOutputsParams
from octavo.structured.child import CompilerChild
from octavo.structured.grammar import MatcherFailed, Unsupported
from octavo.structured.schema import refuse_keywords, refuse_regex, refuse_siblings, schema_of
from octavo.structured.vocabulary import Vocabulary

COMPILE_SECONDS = 1.0  # what the child could do, the engine's process does again
MAX_SUBSCHEMAS = 200  # its masks are made on the engine's thread
_MAX_CHOICES = 1000
_MAX_CACHED = 256  # masks, of one grammar
_KEYWORDS = frozenset(
    [
        *("const", "enum", "type", "items", "properties", "additionalProperties", "required"),
    ]
)
_TYPES = ("array", "boolean", "null", "object", "string")  # its numbers may have forms that JSON has not


class LmFormatEnforcerMatcher:
    def __init__(self, grammar: LmFormatEnforcerGrammar) -> None:
        self._grammar = grammar
        self._states = [grammar.parser]  # after each token

    def fill(self, bitmask: np.ndarray, row: int) -> None:
        bitmask[row] = self._grammar.mask(self._states[-1])

    def accept(self, token_ids: Sequence[int]) -> bool:
        for token_id in token_ids:
            state = self._grammar.advance(self._states[-1], token_id)
            if state is None:
                return False
            self._states.append(state)
        return True

    def validate(self, token_ids: Sequence[int]) -> int:
        state, count = self._states[-1], 0
        for token_id in token_ids:
            state = self._grammar.advance(state, token_id)
            if state is None:
                break
            count += 1
        return count

    def rollback(self, num_tokens: int) -> None:
        del self._states[len(self._states) - num_tokens :]


class LmFormatEnforcerGrammar:
    def __init__(self, parser: Any, tokens: _Tokens) -> None:
        self.parser, self._tokens = parser, tokens
        self._masks: dict[Any, np.ndarray] = {}  # of states that have a name

    def matcher(self) -> LmFormatEnforcerMatcher:
        return LmFormatEnforcerMatcher(self)

    def advance(self, state: Any, token_id: int) -> Any | None:
        """The state after a token, None if it may not come."""
        text = self._tokens.text_of.get(token_id)
        try:
            for character in text or "":
                if character not in state.get_allowed_characters():
                    return None
                state = state.add_character(character)
        except (LMFormatEnforcerException, ValueError, KeyError, IndexError, AttributeError):
            return None
        return state if text else None

    def mask(self, state: Any) -> np.ndarray:
        key = state.cache_key()
        known = self._masks.get(key) if key is not None else None
        if known is not None:
            return known
        ids: list[int] = []
        try:
            self._collect(state, self._tokens.tree.root, ids, state.shortcut_key())
            if state.can_end():
                ids += self._tokens.vocabulary.eos_token_ids
        except (LMFormatEnforcerException, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise MatcherFailed(f"lm-format-enforcer: {error}") from None
        flags = np.zeros(self._tokens.vocabulary.num_words * 32, dtype=bool)
        flags[ids] = True
        words = np.packbits(flags, bitorder="little").view(np.int32)
        if key is not None and len(self._masks) < _MAX_CACHED:
            self._masks[key] = words
        return words

    def _collect(self, state: Any, node: Any, ids: list[int], shortcut: Any) -> None:
        """Tokens on the way down that both the parser and the tree have. Within JSON strings, tokens without a quote
        are known by their length alone."""
        ids += node.tokens
        characters = node.children.keys() & set(state.get_allowed_characters())
        if isinstance(shortcut, tuple) and shortcut[0] == "json_freetext":
            _, length, shortest, longest = shortcut
            known = self._tokens.tree.json_freetext_tokens
            least = min(known.max_token_len, max(0, shortest - length))
            most = min(known.max_token_len, longest - length)
            ids += known.lookup_allowed_tokens(least, most).allowed_tokens
            characters &= {'"'}
        for character in characters:
            self._collect(state.add_character(character), node.children[character], ids, None)


class _Tokens:
    """The vocabulary as a tree of characters. Tokens that are no whole characters are left out."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.text_of: dict[int, str] = {}
        for token_id, piece in enumerate(vocabulary.text_pieces):
            try:
                text = piece.decode()
                if text and all(character >= " " or character in "\n\r" for character in text):
                    self.text_of[token_id] = text  # it takes other control characters for parts of JSON strings
            except UnicodeDecodeError:
                continue
        data = lmformatenforcer.TokenEnforcerTokenizerData(
            [(token_id, text, True) for token_id, text in self.text_of.items()],
            lambda ids: "".join(self.text_of.get(token_id, "") for token_id in ids),
            list(vocabulary.eos_token_ids),
            False,
            vocabulary.size,
        )
        self.tree = data.tokenizer_tree
        self.config = CharacterLevelParserConfig(alphabet="".join(sorted(set().union(*self.text_of.values()))))

    def grammar(self, form: StructuredOutputsParams) -> LmFormatEnforcerGrammar:
        match form.kind:
            case "json":
                parser = lmformatenforcer.JsonSchemaParser(schema_of(form), self.config)
            case "regex":
                parser = lmformatenforcer.RegexParser(form.value, self.config)
            case _:
                parser = UnionParser([lmformatenforcer.StringParser(choice) for choice in form.value])
        parser.config = self.config
        return LmFormatEnforcerGrammar(parser, self)


class LmFormatEnforcerBackend:
    name = "lm-format-enforcer"

    def __init__(self, vocabulary: Vocabulary, num_threads: int = 1) -> None:
        self._tokens = _Tokens(vocabulary)
        home = "octavo.structured.lm_format_enforcer:LmFormatEnforcerCompiler"
        self._child = CompilerChild(home, vocabulary, COMPILE_SECONDS)

    def compile(self, form: StructuredOutputsParams) -> LmFormatEnforcerGrammar:
        check(form)
        if form.kind == "choice" and (strange := set().union(*form.value) - set(self._tokens.config.alphabet)):
            raise Unsupported(f"the character {min(strange)!r}, which no token has whole")
        self._child.compile(form)  # raises, or shows that it can be done
        return self._tokens.grammar(form)

    def close(self) -> None:
        self._child.close()


class LmFormatEnforcerCompiler:
    """In the child: makes the grammar and its first mask, to see whether that ends."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = _Tokens(vocabulary)

    def compile(self, form: StructuredOutputsParams) -> bytes:
        grammar = self._tokens.grammar(form)
        grammar.mask(grammar.parser)
        return b"fine"


def _refuse_unsound(schema: Any) -> None:
    """Raises Unsupported for what it takes, and then does not keep to."""
    for where, here in subschemas(schema):
        values = [*here.get("enum", ()), *([here["const"]] if "const" in here else [])]
        names = list(here.get("properties", ()))
        for value in [*values, *names]:
            if not isinstance(value, str) or not value or json.dumps(value) != f'"{value}"':
                raise Unsupported(f"the value or name {value!r} (at {where})")
        if not values and here.get("type") not in _TYPES:
            raise Unsupported(f"the type {here.get('type')!r} (at {where})")
        if here.get("type") == "array" and not isinstance(here.get("items"), dict):
            raise Unsupported(f"the type 'array' without 'items' (at {where})")
        optional = [name for name in names if name not in here.get("required", ())]
        if optional or (here.get("type") == "object" and not names):
            raise Unsupported(f"properties that are not in 'required' (at {where})")
        if here.get("additionalProperties", False) is not False:
            raise Unsupported(f"'additionalProperties' (at {where})")


def check(form: StructuredOutputsParams) -> None:
    """Raises Unsupported for what lm-format-enforcer would pass over without a word."""
    if form.disable_any_whitespace or form.whitespace_pattern is not None:
        raise Unsupported("disable_any_whitespace" if form.disable_any_whitespace else "whitespace_pattern")
    match form.kind:
        case "json":
            schema = schema_of(form)
            refuse_keywords(schema, _KEYWORDS)
            refuse_siblings(schema, frozenset())
            _refuse_unsound(schema)
            if (count := sum(1 for _ in subschemas(schema))) > MAX_SUBSCHEMAS:
                raise Unsupported(f"a schema of {count} parts, more than {MAX_SUBSCHEMAS}")
        case "regex":
            refuse_regex(form.value)
        case "choice" if len(form.value) > _MAX_CHOICES:
            raise Unsupported(f"{len(form.value)} choices, more than {_MAX_CHOICES}")
        case "grammar" | "structural_tag" | "json_object":
            raise Unsupported(form.kind)
