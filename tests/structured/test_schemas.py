"""200 JSON schemas, one or more for every keyword of the specification (2020-12) and for what people do with them. Each
is either honoured, as the jsonschema library sees it, or refused with the name of what cannot be."""

from __future__ import annotations

import datetime
import json
import random
import re
import uuid
from typing import Any

import jsonschema
import pytest

from octavo.core.structured import AUTO_ORDER, StructuredOutputsParams
from octavo.errors import InvalidRequest
from octavo.structured.compile import Compiler
from tests.structured.sampling import sample, tiny_vocabulary

TXT, INT, NUM, BOOL = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}


def obj(required: str = "", /, **properties: Any) -> dict[str, Any]:
    """A closed object. `required`: names, apart by spaces; * for all."""
    names = list(properties) if required == "*" else required.split()
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def arr(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


def num(**more: Any) -> dict[str, Any]:
    return {"type": "number", **more}


def whole(**more: Any) -> dict[str, Any]:
    return {"type": "integer", **more}


DRAFT7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
LINKED = {"$defs": {"node": obj("v", v=INT, next={"$ref": "#/$defs/node"})}, "$ref": "#/$defs/node"}
TREE = {
    "type": "object",
    "properties": {"v": INT, "kids": arr({"$ref": "#"})},
    "required": ["v"],
    "additionalProperties": False,
}
EXPRESSION = {
    "$defs": {
        "e": {"anyOf": [INT, {"$ref": "#/$defs/sum"}]},
        "sum": obj("*", op={"enum": ["+", "-"]}, left={"$ref": "#/$defs/e"}, right={"$ref": "#/$defs/e"}),
    },
    "$ref": "#/$defs/e",
}

# name -> schema, and the keyword that must be named where it may be refused (None: it must be honoured)
SCHEMAS: dict[str, tuple[Any, str | None]] = {}


def add(name: str, schema: Any, refused_for: str | None = None) -> None:
    assert name not in SCHEMAS
    SCHEMAS[name] = (schema, refused_for)


# ---- type, const, enum
for kind in ("string", "integer", "number", "boolean", "null", "object", "array"):
    add(f"type {kind}", {"type": kind})
add("type list", {"type": ["integer", "null"]})
add("type list of three", {"type": ["boolean", "string", "null"]})
add("type list with object", {"type": ["object", "integer"], "properties": {"a": INT}, "additionalProperties": False})
add("type list with bounds", {"type": ["integer", "string"], "minimum": 3, "maximum": 9, "maxLength": 2})
add("true", True)
add("false", False, "false")
add("empty", {})
add("const string", {"const": "yes"})
add("const number", {"const": 4.5})
add("const negative", {"const": -7})
add("const null", {"const": None})
add("const object", {"const": {"a": [1, {"b": None}]}})
add("const array", {"const": [1, "two", True]})
add("const unicode", {"const": "naïve 你好 🙂"})
add("const escapes", {"const": 'a"b\\c\nd\te\u0001'})
add("enum strings", {"enum": ["red", "green", "blue"]})
add("enum mixed", {"enum": [1, "one", None, True, 2.5, [1], {"a": 1}]})
add("enum of one", {"enum": ["only"]})
add("enum prefixes", {"enum": ["a", "ab", "abc", ""]})
add("enum unicode", {"enum": ["é", "你", "🙂"]})
add("enum with type", {"type": "string", "enum": ["a", "b"]})
add("enum with another type", {"type": "string", "enum": ["a", 1]}, "enum")
add("enum empty", {"enum": []}, "anyOf|enum")
add("enum numbers", {"enum": [1, 10, 100, -1]})
add("enum 300 values", {"enum": [f"value {i}" for i in range(300)]})

# ---- numbers
add("minimum", whole(minimum=5, maximum=5_000))
add("minimum negative", whole(minimum=-20, maximum=-3))
add("minimum across zero", whole(minimum=-15, maximum=27))
add("minimum alone", whole(minimum=10))
add("maximum alone", whole(maximum=10))
add("exclusive bounds", whole(exclusiveMinimum=0, exclusiveMaximum=3))
add("bounds of one value", whole(minimum=7, maximum=7))
add("bounds that exclude all", whole(minimum=8, maximum=7), "minimum|maximum")
add("number bounds", num(minimum=0.5, maximum=1.5))
add("number exclusive bounds", num(exclusiveMinimum=-1, exclusiveMaximum=1))
add("number minimum", num(minimum=2.25))
add("number tiny range", num(minimum=0.001, maximum=0.002))
add("both minimums", whole(minimum=3, exclusiveMinimum=5, maximum=9))
add("bounds beyond 64 bits", whole(minimum=2**70, maximum=2**70 + 5), "minimum|maximum|i64|integer")
add("multipleOf integer", whole(multipleOf=7, minimum=1, maximum=100), "multipleOf")
add("multipleOf one", whole(multipleOf=1, minimum=0, maximum=9), "multipleOf")
add("multipleOf fraction", num(multipleOf=0.5, minimum=0, maximum=10), "multipleOf")
add("multipleOf quarter", num(multipleOf=0.25), "multipleOf")
add("multipleOf alone", whole(multipleOf=12), "multipleOf")
add("multipleOf zero", whole(multipleOf=0), "multipleOf")
add("integer as 1.0", {"type": "number", "const": 1.0})

# ---- strings
add("minLength", text(minLength=3, maxLength=40))
add("maxLength", text(maxLength=5))
add("length exact", text(minLength=4, maxLength=4))
add("length zero", text(maxLength=0))
add("length impossible", text(minLength=3, maxLength=2), "minLength|maxLength")
add("length unicode", text(minLength=2, maxLength=3))
add("pattern", text(pattern="^[a-z]{2,4}$"))
add("pattern unanchored", text(pattern="[0-9]{2}"))
add("pattern alternatives", text(pattern="^(foo|bar)baz$"))
add("pattern with classes", text(pattern=r"^\d{3}-\w+$"))
add("pattern with quotes", text(pattern='^"[a-z]*"$'))
add("pattern with backslash", text(pattern=r"^[a-z]\\[a-z]$"))
add("pattern with dot", text(pattern="^a.b$"))
add("pattern unicode", text(pattern="^[à-ü]{1,3}$"))
add("pattern of any", text(pattern=""))
add("pattern with start only", text(pattern="^ab"))
add("pattern with end only", text(pattern="yz$"))
add("pattern and length", text(pattern="^[a-z]+$", minLength=3, maxLength=6))
add("pattern look-ahead", text(pattern="^(?=a)b"), "look-around|pattern|\\(\\?=")
add("pattern backreference", text(pattern=r"^(a|b)\1$"), "backreference|pattern|\\\\1")
add("pattern word border", text(pattern=r"\bfoo\b"), r"\\b|pattern|look")
add("pattern malformed", text(pattern="("), "pattern|regex")
for name in ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "uri", "hostname", "duration"):
    add(f"format {name}", text(format=name))
for name in ("idn-email", "iri", "json-pointer", "regex", "uri-reference", "uri-template", "idn-hostname"):
    add(f"format {name}", text(format=name), "format")
add("format unknown", text(format="telephone"), "format")
add("format and maxLength", text(format="email", maxLength=30), "format|maxLength")
add("contentEncoding", text(contentEncoding="base64"))
add("contentMediaType", text(contentMediaType="application/json", contentSchema={"type": "object"}))

# ---- arrays
add("items", arr(INT, maxItems=4))
add("items of objects", arr(obj("a", a=INT), maxItems=3))
add("items nested", arr(arr(arr(BOOL, maxItems=2), maxItems=2), maxItems=2))
add("items false", {"type": "array", "items": False})
add("items true", {"type": "array", "items": True, "maxItems": 2})
add("minItems", arr(INT, minItems=2, maxItems=5))
add("maxItems zero", arr(INT, maxItems=0))
add("items exactly", arr(BOOL, minItems=3, maxItems=3))
add("items impossible", arr(INT, minItems=3, maxItems=2), "minItems|maxItems")
add("minItems alone", arr(BOOL, minItems=1))
add("prefixItems", {"type": "array", "prefixItems": [INT, TXT], "items": False, "minItems": 2})
add("prefixItems open", {"type": "array", "prefixItems": [INT, BOOL], "items": TXT, "maxItems": 4})
add("prefixItems short", {"type": "array", "prefixItems": [INT, BOOL, TXT], "items": False})
add("prefixItems with minItems", {"type": "array", "prefixItems": [BOOL], "items": INT, "minItems": 3, "maxItems": 4})
add(
    "tuple of older drafts",
    {**DRAFT7, "type": "array", "items": [INT, TXT], "additionalItems": False},
    "items|additionalItems",
)
add("uniqueItems", arr({"enum": [1, 2, 3]}, uniqueItems=True, maxItems=3), "uniqueItems")
add("uniqueItems false", arr(INT, uniqueItems=False, maxItems=3))
add("contains", {"type": "array", "contains": INT}, "contains")
add("minContains", {"type": "array", "contains": INT, "minContains": 2}, "contains|minContains")
add("maxContains", {"type": "array", "contains": INT, "maxContains": 2}, "contains|maxContains")
add("unevaluatedItems", {"type": "array", "prefixItems": [INT], "unevaluatedItems": False}, "unevaluatedItems")
add("array of anything", {"type": "array", "maxItems": 2})

# ---- objects
add("properties", obj("a b", a=INT, b=TXT))
add("properties optional", obj("", a=INT, b=TXT, c=BOOL))
add("properties some required", obj("b", a=INT, b=TXT, c=BOOL))
add("properties none", obj(""))
add("properties open", {"type": "object", "properties": {"a": INT}, "required": ["a"]})
add("properties of a schema", {"type": "object", "additionalProperties": INT})
add("properties beside others", {"type": "object", "properties": {"a": TXT}, "additionalProperties": BOOL})
add("required without property", {"type": "object", "required": ["x"]})
add(
    "required without property, closed",
    {"type": "object", "required": ["x"], "additionalProperties": False},
    "required|x",
)
add(
    "required twice",
    {"type": "object", "properties": {"a": INT}, "required": ["a", "a"], "additionalProperties": False},
)
add("names with quotes", obj("*", **{'a"b': INT, "c\\d": INT, "e\nf": INT}))
add("names with unicode", obj("*", **{"名前": TXT, "é": INT, "🙂": BOOL}))
add("name empty", obj("*", **{"": INT}))
add("names that look like keywords", obj("*", type=TXT, properties=INT, **{"$ref": BOOL, "enum": NUM}))
add("properties 20", obj("*", **{f"p{i}": BOOL for i in range(20)}))
add("properties 30 optional", obj("", **{f"p{i}": BOOL for i in range(30)}))
add("properties deep", obj("a", a=obj("b", b=obj("c", c=obj("d", d=INT)))))
add("property false", {"type": "object", "properties": {"a": False, "b": INT}, "additionalProperties": False})
add("patternProperties", {"type": "object", "patternProperties": {"^x-": INT}, "additionalProperties": False})
add(
    "patternProperties open",
    {"type": "object", "patternProperties": {"^n": INT}, "additionalProperties": TXT},
    "patternProperties",
)
add("patternProperties and properties", {"type": "object", "properties": {"a": INT}, "patternProperties": {"^x": BOOL},
                                        "required": ["a"], "additionalProperties": False})  # fmt: skip
add(
    "patternProperties two",
    {"type": "object", "patternProperties": {"^a": INT, "^b": BOOL}, "additionalProperties": False},
)
add("propertyNames", {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, "propertyNames")
add("minProperties", {"type": "object", "minProperties": 2, "additionalProperties": INT}, "minProperties|min/max")
add("maxProperties", {"type": "object", "maxProperties": 2, "additionalProperties": INT}, "maxProperties|min/max")
add("minProperties of optional", {**obj("", a=INT, b=INT, c=INT), "minProperties": 2}, "minProperties|min/max")
add("dependentRequired", {**obj("", a=INT, b=INT), "dependentRequired": {"a": ["b"]}}, "dependentRequired")
add("dependentSchemas", {**obj("", a=INT, b=INT), "dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas")
add("dependencies", {**obj("", a=INT, b=INT), "dependencies": {"a": ["b"]}}, "dependencies")
add(
    "unevaluatedProperties",
    {"type": "object", "properties": {"a": INT}, "unevaluatedProperties": False},
    "unevaluatedProperties",
)
add("additionalProperties true", {"type": "object", "properties": {"a": INT}, "additionalProperties": True})

# ---- combinations
add("anyOf", {"anyOf": [INT, TXT, {"type": "null"}]})
add("anyOf of objects", {"anyOf": [obj("*", a=INT), obj("*", b=TXT)]})
add("anyOf overlapping", {"anyOf": [whole(minimum=0, maximum=20), whole(minimum=10, maximum=40)]})
add("anyOf with siblings", {"type": "object", "properties": {"k": TXT}, "required": ["k"],
                            "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "anyOf|required")  # fmt: skip
add("anyOf of one", {"anyOf": [BOOL]})
add("anyOf with false", {"anyOf": [False, BOOL]})
add("anyOf with true", {"anyOf": [True, BOOL]})
add("anyOf empty", {"anyOf": []}, "anyOf")
add("anyOf nested", {"anyOf": [{"anyOf": [INT, BOOL]}, {"anyOf": [TXT, {"type": "null"}]}]})
add("oneOf of types", {"oneOf": [INT, TXT]})
add(
    "oneOf of objects by const", {"oneOf": [obj("*", kind={"const": "a"}, x=INT), obj("*", kind={"const": "b"}, y=TXT)]}
)
add("oneOf of enums", {"oneOf": [{"enum": ["a", "b"]}, {"enum": ["c"]}]})
add("oneOf overlapping", {"oneOf": [NUM, INT]}, "oneOf")
add("oneOf bounds", {"oneOf": [whole(maximum=5, minimum=0), whole(minimum=3, maximum=9)]}, "oneOf")
add("oneOf of one", {"oneOf": [INT]})
add("oneOf with null", {"oneOf": [{"type": "null"}, obj("*", a=INT)]})
add("allOf of bounds", {"allOf": [whole(minimum=3), whole(maximum=8)]})
add("allOf of properties", {"allOf": [{"type": "object", "properties": {"a": INT}, "required": ["a"]},
                                      {"type": "object", "properties": {"b": TXT}, "required": ["b"]}]})  # fmt: skip
add("allOf with a reference", {"$defs": {"base": {"type": "object", "properties": {"id": INT}, "required": ["id"]}},
                               "allOf": [{"$ref": "#/$defs/base"},
                                         {"properties": {"name": TXT}, "required": ["name"]}]})  # fmt: skip
add("allOf of patterns", {"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "z$"}]})
add("allOf contradicting", {"allOf": [INT, TXT]}, "allOf|nsatisfiable|type")
add("allOf and anyOf", {"allOf": [{"anyOf": [INT, TXT]}, {"anyOf": [INT, BOOL]}]})
add("not", {"not": {"type": "string"}}, "not")
add("not within", obj("*", a={"type": "integer", "not": {"const": 3}}), "not")
add("if then else", {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}, "if|then")
add("if alone", {"type": "integer", "if": {"minimum": 3}}, "if")

# ---- references
add("ref to $defs", {"$defs": {"x": INT}, "type": "array", "items": {"$ref": "#/$defs/x"}, "maxItems": 3})
add("ref to definitions", {"definitions": {"x": BOOL}, "$ref": "#/definitions/x"})
add("ref to a property", {**obj("*", a=whole(minimum=0, maximum=9), b={"$ref": "#/properties/a"})})
add(
    "ref escaped",
    {"$defs": {"a/b": INT, "c~d": BOOL}, **obj("*", x={"$ref": "#/$defs/a~1b"}, y={"$ref": "#/$defs/c~0d"})},
)
add("ref percent", {"$defs": {"a b": INT}, "$ref": "#/$defs/a%20b"})
add("ref chain", {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": BOOL}, "$ref": "#/$defs/a"})
add("ref with siblings", {"$defs": {"n": whole(minimum=0)}, "$ref": "#/$defs/n", "maximum": 9})
add("ref missing", {"$ref": "#/$defs/none"}, "ref|Pointer|none")
add("ref elsewhere", {"$ref": "https://example.com/schema.json"}, "ref|example.com")
add("ref to itself alone", {"$ref": "#"}, "ref")
add("ref by anchor", {"$defs": {"x": {"$anchor": "here", "type": "boolean"}}, "$ref": "#here"}, "ref|here")
add(
    "ref by id",
    {"$id": "https://example.com/root", "$defs": {"x": {"$id": "x.json", "type": "boolean"}}, "$ref": "x.json"},
    "ref|x.json",
)
add("dynamicRef", {"$dynamicAnchor": "n", "type": "array", "items": {"$dynamicRef": "#n"}}, "dynamicRef")
add("recursion linked", LINKED)
add("recursion tree", TREE)
add("recursion mutual", EXPRESSION)
add("recursion array", {"type": "array", "items": {"$ref": "#"}})
add("recursion without end", {"$defs": {"a": obj("a", a={"$ref": "#/$defs/a"})}, "$ref": "#/$defs/a"}, "ref")
add("recursion anyOf", {"$defs": {"j": {"anyOf": [BOOL, arr({"$ref": "#/$defs/j"}, maxItems=2)]}}, "$ref": "#/$defs/j"})

# ---- annotations and the like
add(
    "annotations",
    {"title": "t", "description": "d", "default": 3, "examples": [1], "deprecated": True, "readOnly": True, **INT},
)
add("comment and schema", {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": "c", **BOOL})
add("vocabulary", {"$vocabulary": {"https://example.com/v": True}, **BOOL})
add("unknown keyword", {"type": "integer", "x-unit": "kg"})
add("draft 7", {**DRAFT7, "definitions": {"x": INT}, **obj("*", a={"$ref": "#/definitions/x"})})
add("draft 4 exclusiveMinimum", {"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "exclusiveMinimum")
add("nullable", {"type": "string", "nullable": True, "maxLength": 3})
add("type unknown", {"type": "date"}, "type")
add("type malformed", {"type": 3}, "type")
add("properties malformed", {"type": "object", "properties": [1]}, "properties|object|Expected")
add("required malformed", {"type": "object", "required": "a"}, "required|Expected|array")
add("minLength malformed", {"type": "string", "minLength": "3"}, "minLength")
add("items malformed", {"type": "array", "items": 3}, "items|schema|Expected|boolean")

# ---- as people write them
add("person", {"type": "object", "properties": {"name": text(minLength=1), "age": whole(minimum=0, maximum=150),
               "email": text(format="email")}, "required": ["name", "age"], "additionalProperties": False})  # fmt: skip
add("pydantic", {"$defs": {"Color": {"enum": ["RED", "BLUE"], "title": "Color", "type": "string"},
                           "Item": {"properties": {"name": {"title": "Name", "type": "string"},
                                                   "color": {"$ref": "#/$defs/Color"},
                                                   "price": {"anyOf": [NUM, {"type": "null"}], "default": None}},
                                    "required": ["name", "color"], "title": "Item", "type": "object"}},
                 "properties": {"items": {"items": {"$ref": "#/$defs/Item"}, "type": "array", "maxItems": 2}},
                 "required": ["items"], "title": "Order", "type": "object"})  # fmt: skip
add("openai strict", obj("*", steps=arr(obj("*", explanation=TXT, output=TXT), maxItems=2), final_answer=TXT))
add(
    "function call",
    obj("*", name={"const": "get_weather"}, arguments=obj("place", place=TXT, unit={"enum": ["C", "F"]})),
)
add("geojson point", obj("*", type={"const": "Point"}, coordinates=arr(NUM, minItems=2, maxItems=2)))
add("labels", arr({"enum": ["spam", "ham"]}, minItems=1, maxItems=3))
add("key values", {"type": "object", "additionalProperties": {"anyOf": [TXT, NUM, BOOL]}})
add("date range", obj("*", start=text(format="date"), end=text(format="date")))
add("matrix", arr(arr(whole(minimum=0, maximum=9), minItems=2, maxItems=2), minItems=2, maxItems=2))
add("money", obj("*", amount=text(pattern=r"^\d+\.\d{2}$"), currency={"enum": ["EUR", "USD"]}))
add(
    "response envelope",
    {"anyOf": [obj("*", ok={"const": True}, data=obj("id", id=INT)), obj("*", ok={"const": False}, error=TXT)]},
)
add("optional recursion", obj("name", name=TXT, parent={"anyOf": [{"type": "null"}, {"$ref": "#"}]}))
add("mixed tuple", {"type": "array", "prefixItems": [{"const": "add"}, NUM, NUM], "items": False, "minItems": 3})
add("long names", obj("*", **{"a" * 200: INT}))

PATTERNS = re.compile(r'"pattern": "([^"]*)"')  # what strings must have before they may end
NUM_SAMPLES = 20
compiler = Compiler(tiny_vocabulary)


def is_time(text: str) -> bool:
    """RFC 3339's full-time; a leap second is for the calendar to judge."""
    found = re.fullmatch(r"(\d\d:\d\d:)(\d\d)(\.\d+)?([zZ]|[+-]\d\d:\d\d)", text)
    return found is not None and bool(datetime.time.fromisoformat(found[1] + min(found[2], "59")).isoformat())


def is_date(text: str) -> bool:
    """RFC 3339 has a year 0, Python has none."""
    return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", text)) and bool(
        datetime.date.fromisoformat(re.sub("^0000", "2000", text))
    )


def is_date_time(text: str) -> bool:
    return len(text) > 10 and text[10] in "tT " and is_date(text[:10]) and is_time(text[11:])


CALENDAR = {
    "date": (is_date, ValueError),
    "time": (is_time, ValueError),
    "date-time": (is_date_time, ValueError),
    "uuid": (lambda text: bool(uuid.UUID(text)) and len(text) == 36, ValueError),
    "hostname": (
        lambda text: all(re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", label) for label in text.split(".")),
        (),
    ),
    "uri": (lambda text: re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s\"<>\\^`{|}]*", text) is not None, ()),
    "duration": (
        lambda text: re.fullmatch(r"P(?!$)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(\d+H)?(\d+M)?(\d+S)?)?", text) is not None,
        (),
    ),
}


def checker(schema: Any) -> Any:
    draft = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    formats = jsonschema.FormatChecker(())
    formats.checkers = {**draft.FORMAT_CHECKER.checkers, **CALENDAR}
    return draft(schema, format_checker=formats)


def honour(schema: Any, backends: tuple[str, ...]) -> str | None:
    """None if all is well, else the error with which it is refused."""
    form = StructuredOutputsParams(json=schema)
    try:
        compiled = compiler.compile(form, backends).result(60)
    except InvalidRequest as error:
        assert error.field == "structured_outputs.json"
        return str(error)
    validator, chance, num_complete = checker(schema), random.Random(1), 0
    leaning = "".join(PATTERNS.findall(json.dumps(schema))) + ("@." if "email" in json.dumps(schema) else "")
    for _ in range(NUM_SAMPLES):
        made = sample(compiled.grammar, tiny_vocabulary(), chance, leaning)
        if made is not None:
            num_complete += 1
            value = json.loads(made[1])
            problem = next(validator.iter_errors(value), None)
            assert problem is None, f"{made[1]!r}: {problem and problem.message} ({compiled.backend.name})"
    assert num_complete >= NUM_SAMPLES // 2, f"{num_complete} of {NUM_SAMPLES} outputs came to an end"
    return None


def test_there_are_two_hundred() -> None:
    assert len(SCHEMAS) >= 200


@pytest.mark.parametrize("name", SCHEMAS)
def test_honoured_or_refused_by_name(name: str) -> None:
    schema, refused_for = SCHEMAS[name]
    refusal = honour(schema, AUTO_ORDER[:1])
    if refusal is not None:
        assert refused_for is not None, refusal
        assert re.search(refused_for, refusal.split(":", 1)[1]), refusal
