"""The parts that need no engine: schemas as trees, forms, tags, masks, the cache."""

from __future__ import annotations

import pytest
import torch

from octavo.core.json_schema import move_references, resolve, subschemas
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.core.structured import AUTO_ORDER, StructuredOutputsParams, Thinking
from octavo.core.wire import decode_to_core, encode
from octavo.errors import InvalidParameter, InvalidRequest
from octavo.ops.sampling import apply_bitmask
from octavo.structured import compile
from octavo.structured.compile import Compiler
from octavo.structured.grammar import Unsupported
from octavo.structured.schema import is_plain, prepared, refuse_regex
from octavo.structured.structural_tag import triggered_tags
from tests.unit.structured.small import small_vocabulary

DEEP: list[object] = []
for _ in range(70):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({}, "structured_outputs", "exactly one of"),
        ({"regex": "a", "json": {}}, "structured_outputs", "got json and regex"),
        ({"json_object": False}, "structured_outputs", "got none"),
        ({"json": "{"}, "structured_outputs.json", "JSON"),
        ({"json": "[1]"}, "structured_outputs.json", "an object or a boolean"),
        ({"json": {"enum": DEEP}}, "structured_outputs.json", "nested at most 64 deep"),
        ({"json": {"const": float("nan")}}, "structured_outputs.json", "JSON"),
        ({"json": {"const": "\ud800"}}, "structured_outputs.json", "UTF-8"),
        ({"json": {"const": "x" * 500_001}}, "structured_outputs.json", "at most 500000 characters"),
        ({"regex": ""}, "structured_outputs.regex", "not empty"),
        ({"regex": "a" * 50_001}, "structured_outputs.regex", "at most 50000 characters"),
        ({"regex": 3}, "structured_outputs.regex", "a string"),
        ({"choice": []}, "structured_outputs.choice", "at least one"),
        ({"choice": ["a", 3]}, "structured_outputs.choice[1]", "a string"),
        ({"choice": ["a"] * 50_001}, "structured_outputs.choice", "at most 50000 choices"),
        ({"grammar": ""}, "structured_outputs.grammar", "not empty"),
        ({"structural_tag": "3"}, "structured_outputs.structural_tag", "a JSON object"),
        ({"regex": "a", "backend": "magic"}, "structured_outputs.backend", "one of auto, llguidance"),
        ({"json": {}, "disable_any_whitespace": 1}, "structured_outputs.disable_any_whitespace", "true or false"),
        ({"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "},
         "structured_outputs.whitespace_pattern", "no meaning"),
    ],
)  # fmt: skip
def test_what_a_form_must_be(fields: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        StructuredOutputsParams(**fields)  # type: ignore[arg-type]
    assert refused.value.field == field


def test_forms_travel() -> None:
    form = StructuredOutputsParams(
        json={"maximum": 2**70, "const": "é"},
        backend="guidance",
        thinking=Thinking({"<t>": ["</t>"]}, True),
        source="x",
    )
    assert form.backend == "llguidance" and form.value == {"maximum": 2**70, "const": "é"} and form.field == "x"
    submit = Submit("a", [1], SamplingParams(structured_outputs=form), 0.0)
    assert decode_to_core(encode(submit)) == submit
    params = SamplingParams.from_dict({"structured_outputs": {"choice": ["a"]}})
    assert params.structured_outputs is not None and params.structured_outputs.kind == "choice"
    with pytest.raises(InvalidRequest, match="no field 'regx'"):
        SamplingParams.from_dict({"structured_outputs": {"regx": "a"}})
    with pytest.raises(InvalidParameter, match="a StructuredOutputsParams"):
        SamplingParams(structured_outputs="a")  # type: ignore[arg-type]


def test_schemas_as_trees() -> None:
    schema = {
        "properties": {"a": {"$ref": "#/$defs/x~1y"}, "enum": {"items": [{"not": {}}]}},
        "enum": [{"properties": {"not a schema": 1}}],
        "$defs": {"x/y": {"$ref": "#"}, "c": {"const": {"$ref": "#/text"}}},
    }
    places = [where for where, _ in subschemas(schema)]
    assert places == ["#", "#/properties/a", "#/properties/enum", "#/properties/enum/items/0",
                      "#/properties/enum/items/0/not", "#/$defs/x/y", "#/$defs/c"]  # fmt: skip
    assert resolve(schema, "#/$defs/x~1y") == {"$ref": "#"} and resolve(schema, "#") is schema
    for missing in ("#/none", "other.json", "#/enum/7"):
        with pytest.raises(KeyError):
            resolve(schema, missing)
    move_references(schema, "#/$defs/tool_0")
    assert schema["properties"]["a"] == {"$ref": "#/$defs/tool_0/$defs/x~1y"}  # type: ignore[index]
    assert schema["$defs"]["x/y"] == {"$ref": "#/$defs/tool_0"}  # type: ignore[index]
    assert schema["$defs"]["c"] == {"const": {"$ref": "#/text"}}  # type: ignore[index]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (False, "false"),
        ({"type": "text"}, "'type' must be one of"),
        ({"items": {"minLength": -1}}, r"'minLength' must be .* got -1 \(at #/items\)"),
        ({"multipleOf": 0}, "'multipleOf'"),
        ({"required": "a"}, "'required'"),
        ({"$ref": "#"}, r"'\$ref' \(at #\) leads back to itself"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "leads back"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "leads back"),
    ],
)
def test_malformed_schemas_are_named(schema: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prepared(schema, False)


def test_schemas_are_prepared() -> None:
    assert prepared({"uniqueItems": False, "items": {"unevaluatedProperties": True}}, False) == {"items": {}}
    closed = prepared({"properties": {"a": {"type": "object", "additionalProperties": True}}}, True)
    assert closed == {
        "properties": {"a": {"type": "object", "additionalProperties": True}},
        "additionalProperties": False,
    }
    fine = {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]}
    assert prepared(dict(fine), False) == fine


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", r"\bfoo", "a*?", r"\p{L}", "(?i)a"])
def test_regexes_that_mean_different_things_are_refused(pattern: str) -> None:
    with pytest.raises(Unsupported):
        refuse_regex(pattern)
    refuse_regex(r"(?:a|b)+\d{2,3}[^x]\.")


def test_plain_forms() -> None:
    assert is_plain(StructuredOutputsParams(choice=["a"])) and is_plain(StructuredOutputsParams(json={"items": {}}))
    for fields in ({"regex": "a"}, {"json": {"pattern": "a"}}, {"json": {"allOf": [{}]}}, {"grammar": "start: A"}):
        assert not is_plain(StructuredOutputsParams(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ({}, "`structures` and `triggers`"),
        ({"structures": [], "triggers": ["a"]}, "`structures`"),
        ({"structures": [{"begin": "x"}], "triggers": ["a"]}, "begins with none"),
        ({"structures": [{"begin": "a", "schema": 3}], "triggers": ["a"]}, "`schema`"),
    ],
)
def test_malformed_tags(tag: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        triggered_tags(tag)


@pytest.mark.parametrize("vocab_size", [32, 50, 300])
@pytest.mark.parametrize("rows", [[0], [1, 3], [0, 1, 2, 3]])
def test_apply_bitmask(vocab_size: int, rows: list[int]) -> None:
    torch.manual_seed(vocab_size)
    logits = torch.randn(4, vocab_size)
    allowed = torch.rand(len(rows), vocab_size) < 0.3
    bits = torch.zeros(len(rows), -(-vocab_size // 32), dtype=torch.int64)
    for k, token_id in allowed.nonzero().tolist():
        bits[k, token_id // 32] |= 1 << (token_id % 32)
    bits = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)
    masked = logits.clone()
    apply_bitmask(masked, torch.tensor(rows), bits)
    expected = logits.clone()
    for k, row in enumerate(rows):
        expected[row, ~allowed[k]] = -torch.inf
    assert torch.equal(masked, expected)


def test_the_cache_is_bounded_and_keeps_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "_MAX_CACHED", 3)
    compiler = Compiler(small_vocabulary)

    def ask(word: str) -> object:
        return compiler.compile(StructuredOutputsParams(choice=[word]), AUTO_ORDER).result(20).grammar

    first = ask("a")
    for word in "bcabd":
        ask(word)
    assert ask("a") is first and len(compiler._cache) == 3
    second = ask("c")
    assert ask("a") is first and second is ask("c")
    with pytest.raises(InvalidRequest):
        ask("XYZ")
    compiler.shutdown()
