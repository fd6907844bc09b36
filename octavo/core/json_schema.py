"""JSON schemas as trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

# Where schemas lie within schemas (JSON Schema 2020-12, and what older drafts call the same).
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)


def subschemas(schema: Any, path: str = "#") -> Iterator[tuple[str, Any]]:
    """(where, schema), a schema before those within it. Values of `enum` and the like are not looked at."""
    todo = [(path, schema)]
    while todo:
        where, here = todo.pop()
        yield where, here
        if not isinstance(here, dict):
            continue
        inner = [
            (f"{where}/{key}/{name}", part)
            for key in _MAPS
            if isinstance(here.get(key), dict)
            for name, part in here[key].items()
        ]
        inner += [
            (f"{where}/{key}/{i}", part)
            for key in _LISTS
            if isinstance(here.get(key), list)
            for i, part in enumerate(here[key])
        ]
        inner += [(f"{where}/{key}", here[key]) for key in _SINGLE if isinstance(here.get(key), dict)]
        todo += reversed(inner)


def resolve(schema: Any, reference: str) -> Any:
    """What a reference to a place in the same schema means (RFC 6901). Raises KeyError where there is no such place,
    and for references of other kinds."""
    if reference != "#" and not reference.startswith("#/"):
        raise KeyError(reference)
    found = schema
    for part in unquote(reference[1:]).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict):
            found = found[part]
        else:
            raise KeyError(reference)
    return found


def move_references(schema: Any, root: str) -> None:
    """In place: references to places in this schema go on to mean them where it becomes the part `root` of another."""
    for _, here in subschemas(schema):
        reference = here.get("$ref") if isinstance(here, dict) else None
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            here["$ref"] = root + reference[1:]
