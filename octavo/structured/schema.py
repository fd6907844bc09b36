"""Which keywords of JSON Schema rule values out, and which of them a backend can honour."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from octavo.core.json_schema import subschemas
from octavo.core.structured import StructuredOutputsParams
from octavo.structured.grammar import Unsupported

# Keywords that rule values out. All others only say something, or name a place.
ASSERTIONS = frozenset(
    [
        "$dynamicRef",
        "$recursiveRef",
        "$ref",
        "additionalItems",
        "additionalProperties",
        "allOf",
        "anyOf",
        "const",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "disallow",
        "divisibleBy",
        "else",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "extends",
        "format",
        "if",
        "items",
        "maxContains",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minContains",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "not",
        "oneOf",
        "pattern",
        "patternProperties",
        "prefixItems",
        "properties",
        "propertyNames",
        "required",
        "then",
        "type",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    ]
)
# What they say when they rule nothing out.
_NEUTRAL: Mapping[str, Any] = {
    "additionalItems": True,
    "additionalProperties": True,
    "minItems": 0,
    "minLength": 0,
    "minProperties": 0,
    "unevaluatedItems": True,
    "unevaluatedProperties": True,
    "uniqueItems": False,
}


def refuse_keywords(schema: Any, supported: Collection[str]) -> None:
    """Raises Unsupported for a keyword that rules values out and is not among `supported`."""
    for where, here in subschemas(schema):
        for keyword in here if isinstance(here, dict) else ():
            if keyword in ASSERTIONS and keyword not in supported and not says_nothing(keyword, here[keyword]):
                raise Unsupported(f"{keyword!r} (at {where})")


def says_nothing(keyword: str, value: Any) -> bool:
    return keyword in _NEUTRAL and type(value) is type(_NEUTRAL[keyword]) and value == _NEUTRAL[keyword]


def schema_of(form: StructuredOutputsParams) -> Any:
    """The schema of a form of the kind json or json_object, changed as its options say."""
    if form.kind == "json_object":
        return {"type": "object"}
    schema = form.value
    if form.disable_additional_properties:
        for _, here in subschemas(schema):
            if isinstance(here, dict) and _describes_objects(here):
                here.setdefault("additionalProperties", False)
    return schema


def _describes_objects(schema: Mapping[str, Any]) -> bool:
    types = schema.get("type", ())
    return "properties" in schema or types == "object" or (isinstance(types, list) and "object" in types)
