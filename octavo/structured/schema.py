"""Which keywords of JSON Schema rule values out, and which of them a backend can honour."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import unquote

from octavo.core.json_schema import resolve, subschemas
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


def schema_of(form: StructuredOutputsParams) -> dict[str, Any]:
    """The schema of a form of the kind json or json_object, `prepared`."""
    if form.kind == "json_object":
        return {"type": "object"}
    return prepared(form.value, form.disable_additional_properties)


def prepared(schema: Any, is_closed: bool) -> dict[str, Any]:
    """A schema without what says nothing; `is_closed`: its objects have no properties that it does not name. Changes
    the one it is given. Raises ValueError where it is malformed."""
    if schema is True:
        return {}
    if schema is False:
        raise ValueError("no value fits the schema false")
    for where, here in subschemas(schema):
        if isinstance(here, dict):
            _check_keywords(here, where)
            for keyword in [keyword for keyword in _DROPPED if says_nothing(keyword, here.get(keyword))]:
                del here[keyword]
            if is_closed and _describes_objects(here):
                here.setdefault("additionalProperties", False)
    refuse_endless(schema)
    return schema  # type: ignore[no-any-return]


_DROPPED = ("uniqueItems", "unevaluatedItems", "unevaluatedProperties")  # backends refuse to hear of them at all


def _describes_objects(schema: Mapping[str, Any]) -> bool:
    types = schema.get("type", ())
    return "properties" in schema or types == "object" or (isinstance(types, list) and "object" in types)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _is_schema_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


# What the specification has keywords be.
_SHAPES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("type",), _is_type, "one of the seven types, or a list of them"),
    (("enum",), lambda value: isinstance(value, list), "a list"),
    (
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        _is_count,
        "a whole number of at least 0",
    ),
    (("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number, "a number"),
    (("multipleOf",), lambda value: _is_number(value) and value > 0, "a number greater than 0"),
    (("pattern", "format", "$ref", "$dynamicRef"), lambda value: isinstance(value, str), "a string"),
    (("required",), _is_names, "a list of names"),
    (("properties", "patternProperties", "$defs", "definitions"), _is_schemas, "an object of schemas"),
    (("anyOf", "oneOf", "allOf", "prefixItems"), _is_schema_list, "a list of schemas that is not empty"),
    (("items",), lambda value: _is_schema(value) or _is_schema_list(value), "a schema"),
    (("additionalProperties", "additionalItems", "contains", "not", "propertyNames"), _is_schema, "a schema"),
    (("uniqueItems",), lambda value: isinstance(value, bool), "true or false"),
)


def _check_keywords(schema: Mapping[str, Any], where: str) -> None:
    for keywords, is_well_formed, shape in _SHAPES:
        for keyword in keywords:
            if keyword in schema and not is_well_formed(schema[keyword]):
                shown = repr(schema[keyword])
                shown = shown if len(shown) <= 100 else shown[:100] + "…"
                raise ValueError(f"{keyword!r} must be {shape}, got {shown} (at {where})")


def refuse_endless(schema: Any) -> None:
    """Raises ValueError for references that require themselves: no value of finite size fits them. References that
    cannot be followed are left to the backends."""
    parts = dict(subschemas(schema))
    finite: set[str] = set()
    endless = dict(parts)
    while endless:
        ended = [where for where, here in endless.items() if _is_finite(here, where, parts, finite)]
        if not ended:
            break
        finite.update(ended)
        for where in ended:
            del endless[where]
    if "#" in endless:
        where = min((place for place in endless if "$ref" in endless[place]), default="#")
        raise ValueError(f"'$ref' (at {where}) leads back to itself without end: no finite value fits")


def _is_finite(here: Any, where: str, parts: Mapping[str, Any], finite: Collection[str]) -> bool:
    """Does a value of finite size fit, as far as is known? `finite` are the parts of which that is known."""
    if not isinstance(here, dict):
        return True

    def fits(place: str) -> bool:
        return place in finite or place not in parts

    reference = here.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        target = unquote(reference)
        target = "/".join(part.replace("~1", "\x00").replace("~0", "~") for part in target.split("/"))
        if not fits(target.replace("\x00", "/")):
            return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in here and not any(fits(f"{where}/{keyword}/{i}") for i in range(len(here[keyword]))):
            return False
    if not all(fits(f"{where}/allOf/{i}") for i in range(len(here.get("allOf", ())))):
        return False
    types = here.get("type")
    if types in (None, "object") and not all(
        fits(f"{where}/properties/{name}") for name in here.get("required", ()) if name in here.get("properties", {})
    ):
        return types is None and not here.get("properties")
    if types == "array" and here.get("minItems", 0) > 0:
        return fits(f"{where}/prefixItems/0") if "prefixItems" in here else fits(f"{where}/items")
    return True


_INTRICATE = ("allOf", "format", "multipleOf", "oneOf", "pattern", "patternProperties")


def is_plain(form: StructuredOutputsParams) -> bool:
    """Nothing in it has regular expressions intersected or complemented, which may take a time that no limit of
    llguidance bounds."""
    if form.kind in ("choice", "json_object"):
        return form.whitespace_pattern is None
    if form.kind != "json" or form.whitespace_pattern is not None:
        return False
    for _, here in subschemas(form.value):
        if isinstance(here, dict) and ("$ref" in here and len(here) > 1 and not set(here) <= _BESIDE_REFERENCES):
            return False
        if isinstance(here, dict) and any(keyword in here for keyword in _INTRICATE):
            return False
    return True


_BESIDE_REFERENCES = {"$ref", "$defs", "definitions", "title", "description", "default", "$schema", "$id"}


# Of these a backend looks at the first alone, and passes over what stands beside it.
_WHOLE = ("$ref", "const", "enum", "anyOf")
_STRING_RULES = ("pattern", "format", "minLength", "maxLength")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
_RULES_OF = {
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "object": ("properties", "additionalProperties", "required"),
    "string": _STRING_RULES,
}


def refuse_siblings(schema: Any, formats: Collection[str]) -> None:
    """Raises Unsupported for keywords that say something together which each alone does not, for backends that look
    at one of them and pass over the other; for a `format` that is not among `formats`; and for booleans as schemas."""
    for where, here in subschemas(schema):
        if not isinstance(here, dict):
            if here is False or where == "#":
                raise Unsupported(f"{here!r} as a schema (at {where})")
            continue
        rules = [keyword for keyword in here if keyword in ASSERTIONS and not says_nothing(keyword, here[keyword])]
        whole = next((keyword for keyword in _WHOLE if keyword in here), None)
        if whole is not None:
            if whole == "$ref":
                _refuse_unresolved(schema, here["$ref"], where)
            allowed = {whole, "type"} if whole in ("const", "enum") else {whole}
            for keyword in rules:
                if keyword not in allowed:
                    raise Unsupported(f"{keyword!r} beside {whole!r} (at {where})")
            values = here[whole] if whole == "enum" else [here["const"]] if whole == "const" else []
            if whole == "enum" and not values:
                raise Unsupported(f"'enum' without values (at {where})")
            if "type" in here and not all(_is_of_type(value, here["type"]) for value in values or ()):
                raise Unsupported(f"{whole!r} with values of another 'type' (at {where})")
            continue
        _refuse_untyped(here, rules, where)
        strings = [keyword for keyword in _STRING_RULES if keyword in rules]
        if len(strings) > 1 and set(strings) != {"minLength", "maxLength"}:
            raise Unsupported(f"{strings[1]!r} beside {strings[0]!r} (at {where})")
        if "pattern" in rules:
            refuse_regex(here["pattern"])
            _refuse_escapes(here["pattern"], where)
        if "format" in rules and here["format"] not in formats:
            raise Unsupported(f"the format {here['format']!r} (at {where})")
        missing = [name for name in here.get("required", ()) if name not in here.get("properties", {})]
        if missing:
            raise Unsupported(f"'required' with {missing[0]!r}, which is not in 'properties' (at {where})")


def _refuse_untyped(schema: Mapping[str, Any], rules: Collection[str], where: str) -> None:
    """Rules hold for values of their type and leave others free; backends read the type out of the rules."""
    types = schema.get("type")
    for kind, keywords in _RULES_OF.items():
        for keyword in keywords:
            if keyword in rules and types != kind and not (kind == "number" and types == "integer"):
                raise Unsupported(f"{keyword!r} without the type {kind!r} alone (at {where})")


def _refuse_unresolved(schema: Any, reference: str, where: str) -> None:
    try:
        resolve(schema, reference)
    except KeyError:
        raise Unsupported(f"'$ref' to {reference!r} (at {where})") from None


_PATTERN_PARTS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|[^\[]", re.DOTALL)
_ESCAPED = ('"', "\\", "\n", "\t", "\r", "\x00", "\x1f")  # characters that JSON writes with a backslash


def _refuse_escapes(pattern: str, where: str) -> None:
    """Raises Unsupported for patterns that have characters which stand escaped in JSON: backends match what is written
    instead of what it means."""
    for match in _PATTERN_PARTS.finditer(pattern):
        part = match[0]
        if part in "^$()|*+?{}":
            continue
        try:
            matches = any(re.fullmatch(part, character) for character in _ESCAPED)
        except re.error:
            raise Unsupported(f"'pattern' with {part} (at {where})") from None
        if matches:
            raise Unsupported(f"'pattern' with {part}, which may stand for characters that need escapes (at {where})")


def _is_of_type(value: Any, types: Any) -> bool:
    names = types if isinstance(types, list) else [types]
    return any(
        isinstance(value, _TYPES.get(name, ())) and (name == "boolean" or not isinstance(value, bool)) for name in names
    )


_REGEX_PARTS = re.compile(r"\\.|\(\?[^:]|[*+?}][?+]|\[\[|&&", re.DOTALL)


def refuse_regex(pattern: Any) -> None:
    """Raises Unsupported for what lies beyond regular expressions proper, or means different things to different
    engines."""
    if not isinstance(pattern, str):
        raise ValueError("a pattern must be a string")
    for match in _REGEX_PARTS.finditer(pattern):
        part = match[0]
        if part.startswith("\\"):
            if part[1].isalnum() and part[1] not in "dDwWsSnrtfv":
                raise Unsupported(f"{part} in a regex")
        else:
            raise Unsupported(f"{part} in a regex")
