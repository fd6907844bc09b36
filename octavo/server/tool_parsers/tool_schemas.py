"""What a request's tools say of their parameters, for formats that write values without JSON's quotes."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.server.json_stream import dump, load

_MAX_LITERAL = 20_000  # characters of a Python literal that is no JSON
_MAX_DEPTH = 8  # of references and unions in a schema

_JSON_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
    (type(None), "null"),
)


class ToolSchemas:
    """The tools of one request, in OpenAI's shape: {"function": {"name", "parameters"}} or that without the wrapper.

    Schemas come from users: whatever they hold that is no JSON schema is taken to say nothing.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._schemas: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = tool.get("function") if isinstance(tool.get("function"), Mapping) else tool
            assert function is not None
            name, schema = function.get("name"), function.get("parameters", function.get("input_schema"))
            if isinstance(name, str):
                self._schemas[name] = schema if isinstance(schema, Mapping) else {}

    def __contains__(self, name: str) -> bool:
        return name in self._schemas

    def types(self, tool: str, parameter: str) -> frozenset[str]:
        """The JSON types that a value may have; empty if nothing is known."""
        schema = self._schemas.get(tool, {})
        properties = schema.get("properties")
        return _types_of(properties.get(parameter), schema, 0) if isinstance(properties, Mapping) else frozenset()

    def is_text(self, tool: str, parameter: str) -> bool:
        """Whatever is written is the value."""
        return self.types(tool, parameter) == {"string"}

    def to_json(self, tool: str, parameter: str, written: str) -> str:
        """The JSON text of a value that was written bare: by its type, else as a string."""
        types, bare = self.types(tool, parameter), written.strip()
        if types == {"string"}:
            return dump(written)
        try:
            value = load(bare)
        except ValueError:
            pass
        else:
            if not types or _type_of(value) in types or (_type_of(value) == "integer" and "number" in types):
                return bare
            if isinstance(value, float) and value.is_integer() and "integer" in types:
                return str(int(value))
        if "boolean" in types and bare.lower() in ("true", "false"):
            return bare.lower()
        if bare in ("None", "null") and (not types or "null" in types):
            return "null"
        if not types or types & {"object", "array", "boolean"}:
            literal = _python_literal(bare)
            if literal is not None and (not types or _type_of(literal[0]) in types):
                return literal[1]
        return dump(written)


def literal_value(node: ast.expr) -> Any:
    """The value of a literal's syntax tree. Raises ValueError for what is no literal."""
    try:
        return ast.literal_eval(node)
    except (TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


def parse_expression(text: str) -> ast.expr:
    """Python's syntax tree of an expression. Raises ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a string is the model's business
            return ast.parse(text, mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _python_literal(text: str) -> tuple[Any, str] | None:
    """(value, JSON text) of True, (1, 2), {'a': None} and the like."""
    if len(text) > _MAX_LITERAL:
        return None
    try:
        value = literal_value(parse_expression(text))
        return None if isinstance(value, str) else (value, dump(value))
    except ValueError:
        return None


def _type_of(value: Any) -> str:
    return next((name for kind, name in _JSON_TYPES if isinstance(value, kind)), "array")  # tuples too


def _types_of(schema: Any, root: Mapping[str, Any], depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return frozenset()
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset((named,))
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    if isinstance(schema.get("enum"), list):
        return frozenset(_type_of(value) for value in schema["enum"])
    if "const" in schema:
        return frozenset((_type_of(schema["const"]),))
    if isinstance(reference := schema.get("$ref"), str):
        return _types_of(_resolve(reference, root), root, depth + 1)
    for union in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(union), list):
            parts = [_types_of(part, root, depth + 1) for part in schema[union]]
            return frozenset().union(*parts) if all(parts) or union == "allOf" else frozenset()
    return frozenset()


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """ "#/$defs/Name" within the same schema."""
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
