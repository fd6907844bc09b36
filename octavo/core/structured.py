"""What form a request's output must have. Checked once, at the edge, as far as no backend is needed for it."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from octavo.errors import InvalidParameter, InvalidRequest

Kind = Literal["json", "regex", "choice", "grammar", "json_object", "structural_tag"]
KINDS: tuple[Kind, ...] = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
AUTO_ORDER = ("llguidance", "xgrammar", "outlines", "lm-format-enforcer")  # the fastest first
BACKENDS = ("auto", *AUTO_ORDER)
_OTHER_NAMES = {"guidance": "llguidance", "outlines-core": "outlines", "lm_format_enforcer": "lm-format-enforcer"}

MAX_CHARACTERS = 500_000  # of a schema, a grammar, or all choices together
MAX_REGEX = 50_000  # characters
MAX_CHOICES = 50_000
MAX_NESTING = 64  # of JSON


class Thinking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thoughts that may come before what is structured, and are free. `tags`: how they begin, and how each ends."""

    tags: dict[str, list[str]]
    starts_inside: bool = False  # the prompt has opened them


class StructuredOutputsParams(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The form of an output: exactly one of `json`, `regex`, `choice`, `grammar`, `json_object`, `structural_tag`.
    Afterwards `json` and `structural_tag` are text.

    Raises InvalidParameter and InvalidRequest. What only a backend can tell (a keyword that it does not know, a
    grammar with no words) ends the request when its grammar is compiled.
    """

    json: str | dict[str, Any] | bool | None = None  # a JSON schema, or its text
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # Lark, or EBNF with ::=
    json_object: bool | None = None  # any JSON object
    structural_tag: str | dict[str, Any] | None = None  # structured parts within free text
    disable_any_whitespace: bool = False  # JSON: none between its parts
    disable_additional_properties: bool = False  # JSON schemas: objects have no others than those they name
    whitespace_pattern: str | None = None  # JSON: a regex of what may stand between its parts
    backend: str | None = None  # one of BACKENDS; None: the engine's default
    thinking: Thinking | None = None
    source: str | None = None  # what the request's own field is called, for errors

    def __post_init__(self) -> None:
        self._check_kind()
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidParameter(f"structured_outputs.{name}", getattr(self, name), "true or false")
        if self.backend is not None:
            if not isinstance(self.backend, str):
                raise InvalidParameter("structured_outputs.backend", self.backend, "a string")
            self.backend = canonical_backend(self.backend)
            if self.backend not in BACKENDS:
                raise InvalidParameter("structured_outputs.backend", self.backend, f"one of {', '.join(BACKENDS)}")
        pattern = self.whitespace_pattern
        if pattern is not None:
            self._check_text("structured_outputs.whitespace_pattern", pattern, MAX_REGEX)
            if self.disable_any_whitespace:
                raise InvalidRequest(
                    "structured_outputs.whitespace_pattern has no meaning with disable_any_whitespace",
                    "structured_outputs.whitespace_pattern",
                )
        if self.thinking is not None and not isinstance(self.thinking, Thinking):
            raise InvalidParameter("structured_outputs.thinking", self.thinking, "a Thinking")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: str = "structured_outputs") -> StructuredOutputsParams:
        """From decoded JSON. None means the default. Unknown names are refused."""
        if not isinstance(fields, Mapping):
            raise InvalidParameter(source, fields, 'an object such as {"regex": "[0-9]+"}')
        known = [name for name in cls.__struct_fields__ if name not in ("thinking", "source")]
        for name in fields:
            if name not in known and not name.startswith("_"):  # vLLM's own notes begin with _
                raise InvalidRequest(f"{source} has no field {name!r}; known are {', '.join(known)}", source)
        return cls(**{name: value for name, value in fields.items() if value is not None and name in known})

    @property
    def kind(self) -> Kind:
        return next(name for name in KINDS if self._has(name))

    @property
    def field(self) -> str:
        """The field of the request that says it."""
        return self.source or f"structured_outputs.{self.kind}"

    @property
    def value(self) -> Any:
        """Of the kind it is; schemas and structural tags as decoded JSON."""
        value = getattr(self, self.kind)
        return read_json(value, self.field) if self.kind in ("json", "structural_tag") else value

    def _has(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and not (name == "json_object" and value is False)

    def _check_kind(self) -> None:
        given = [name for name in KINDS if self._has(name)]
        if len(given) != 1:
            raise InvalidRequest(
                f"structured_outputs must have exactly one of {', '.join(KINDS)}, got {' and '.join(given) or 'none'}",
                self.source or "structured_outputs",
            )
        match given[0]:
            case "json":
                schema = self.value
                if not isinstance(schema, dict | bool):
                    raise InvalidParameter(self.field, self.json, "a JSON schema: an object or a boolean")
                self.json = json_text.dumps(schema, ensure_ascii=False)
            case "structural_tag":
                tag = self.value
                if not isinstance(tag, dict):
                    raise InvalidParameter(self.field, self.structural_tag, "a JSON object")
                self.structural_tag = json_text.dumps(tag, ensure_ascii=False)
            case "regex":
                self._check_text(self.field, self.regex, MAX_REGEX)
            case "grammar":
                self._check_text(self.field, self.grammar, MAX_CHARACTERS)
            case "json_object":
                if self.json_object is not True:
                    raise InvalidParameter(self.field, self.json_object, "true or false")
            case "choice":
                self._check_choice()

    def _check_choice(self) -> None:
        choices = self.choice
        if isinstance(choices, tuple):
            choices = self.choice = list(choices)
        if not isinstance(choices, list) or not choices:
            raise InvalidParameter(self.field, choices, "a list of strings with at least one entry")
        if len(choices) > MAX_CHOICES:
            raise InvalidParameter(self.field, f"{len(choices)} choices", f"at most {MAX_CHOICES} choices")
        for i, choice in enumerate(choices):
            self._check_text(f"{self.field}[{i}]", choice, MAX_CHARACTERS)
        if sum(map(len, choices)) > MAX_CHARACTERS:
            raise InvalidParameter(self.field, f"{sum(map(len, choices))} characters", _limit(MAX_CHARACTERS))

    def _check_text(self, field: str, text: Any, limit: int) -> None:
        if not isinstance(text, str) or not text:
            raise InvalidParameter(field, text, "a string that is not empty")
        if len(text) > limit:
            raise InvalidParameter(field, f"{len(text)} characters", _limit(limit))
        if not _is_utf8(text):
            raise InvalidParameter(field, text, "text that UTF-8 can carry: it has half of a surrogate pair")


def canonical_backend(name: str) -> str:
    """A backend may be called by what vLLM calls it, or by its package."""
    return _OTHER_NAMES.get(name, name)


def read_json(value: Any, field: str) -> Any:
    """Decoded JSON from text or as it is, within the limits of size and nesting. Raises InvalidParameter."""
    try:
        if isinstance(value, str):
            text = value
            if len(text) > MAX_CHARACTERS:
                raise InvalidParameter(field, f"{len(text)} characters", _limit(MAX_CHARACTERS))
            value = json_text.loads(text, parse_constant=_refuse_constant)
        else:
            text = json_text.dumps(value, ensure_ascii=False, allow_nan=False)
            if len(text) > MAX_CHARACTERS:
                raise InvalidParameter(field, f"{len(text)} characters", _limit(MAX_CHARACTERS))
    except (RecursionError, ValueError, TypeError) as error:
        if isinstance(error, InvalidParameter):
            raise
        if isinstance(error, RecursionError):
            raise InvalidParameter(field, "deeper nesting", f"nested at most {MAX_NESTING} deep") from None
        raise InvalidParameter(field, value, f"JSON ({error})") from None
    if not _is_utf8(json_text.dumps(value, ensure_ascii=False)):
        raise InvalidParameter(field, value, "text that UTF-8 can carry: it has half of a surrogate pair")
    if any(depth > MAX_NESTING for depth in _depths(value)):
        raise InvalidParameter(field, "deeper nesting", f"nested at most {MAX_NESTING} deep")
    return value


def _depths(value: Any) -> Iterator[int]:
    todo = [(value, 1)]
    while todo:
        part, depth = todo.pop()
        if isinstance(part, dict | list):
            yield depth
            todo += [(inner, depth + 1) for inner in (part.values() if isinstance(part, dict) else part)]


def _limit(characters: int) -> str:
    return f"at most {characters} characters long"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
