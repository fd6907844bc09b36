"""Every backend behind the one protocol, its compiling process included; hostile forms; what auto falls back to."""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from octavo.core.structured import AUTO_ORDER, StructuredOutputsParams
from octavo.errors import InvalidRequest
from octavo.structured import child, compile, llguidance, lm_format_enforcer, outlines, xgrammar
from octavo.structured.compile import Compiled, Compiler
from octavo.structured.grammar import MatcherFailed
from tests.structured.sampling import allowed_ids, sample, tiny_vocabulary

SECONDS = 1.5  # that compiling may take here


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (llguidance, xgrammar, outlines):
            patch.setattr(module, "COMPILE_SECONDS", SECONDS)
        patch.setattr(child, "MEMORY_BYTES", 1 << 30)
        made = Compiler(tiny_vocabulary)
        yield made
        made.shutdown()


def compiled(compiler: Compiler, backend: str, **fields: Any) -> Compiled:
    return compiler.compile(StructuredOutputsParams(**fields), (backend,)).result(150)


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"regex": r"[a-c]{2,5}-[0-9]"}, r"[a-c]{2,5}-[0-9]"),
    ({"choice": ["yes", "no", "why not?", 'a"b\\c']}, r"yes|no|why not\?|a\"b\\c"),
]


@pytest.mark.parametrize("backend", AUTO_ORDER)
def test_the_protocol(compiler: Compiler, backend: str) -> None:
    vocabulary, chance = tiny_vocabulary(), random.Random(0)
    (end,) = vocabulary.eos_token_ids
    for fields, pattern in FORMS:
        grammar = compiled(compiler, backend, **fields).grammar
        for _ in range(20):
            made = sample(grammar, vocabulary, chance)
            assert made is not None and re.fullmatch(pattern, made[1].decode()), made
            token_ids = made[0]
            matcher = grammar.matcher()
            last = allowed_ids(_after(grammar, token_ids), vocabulary)
            bad = next(i for i in range(5, 256) if i not in last and i not in vocabulary.special_ids)
            assert matcher.validate([*token_ids, bad]) == len(token_ids)
            assert matcher.accept(token_ids) and end in allowed_ids(matcher, vocabulary)
            matcher.rollback(len(token_ids))  # as after drafts that were not taken
            assert allowed_ids(matcher, vocabulary) == allowed_ids(grammar.matcher(), vocabulary)
            assert matcher.accept(token_ids[:1]) and matcher.accept(token_ids[1:])
            assert not matcher.accept([bad])


def _after(grammar: Any, token_ids: list[int]) -> Any:
    matcher = grammar.matcher()
    assert matcher.accept(token_ids)
    return matcher


@pytest.mark.parametrize("backend", AUTO_ORDER[1:])
def test_schemas_that_other_backends_honour(compiler: Compiler, backend: str) -> None:
    """A part of test_schemas.py's, and never a wrong output."""
    from tests.structured.test_schemas import SCHEMAS, checker

    num_honoured = 0
    for name in list(SCHEMAS)[::4]:
        schema = SCHEMAS[name][0]
        try:
            grammar = compiled(compiler, backend, json=schema).grammar
        except InvalidRequest as error:
            assert str(error).startswith("structured_outputs.json can")
            continue
        chance, validator = random.Random(2), checker(schema)
        for _ in range(6):
            made = sample(grammar, tiny_vocabulary(), chance)
            if made is not None:
                validator.validate(json.loads(made[1]))
        num_honoured += 1
    assert num_honoured >= {"xgrammar": 20, "outlines": 10, "lm-format-enforcer": 2}[backend]


@pytest.mark.parametrize("backend", ["llguidance", "xgrammar"])
def test_grammars_and_tags(compiler: Compiler, backend: str) -> None:
    chance, vocabulary = random.Random(3), tiny_vocabulary()
    grammar = compiled(compiler, backend, grammar='root ::= "<" [a-f]+ ">" | "(" root ")"').grammar
    for _ in range(10):
        made = sample(grammar, vocabulary, chance)
        assert made is None or re.fullmatch(r"\(*<[a-f]+>\)*", made[1].decode())
    for tag in (
        {"structures": [{"begin": "<n>", "schema": {"type": "boolean"}, "end": "</n>"}], "triggers": ["<n"]},
        {"format": {"type": "triggered_tags", "triggers": ["<n"],
                    "tags": [{"begin": "<n>", "content": {"type": "json_schema", "json_schema": {"type": "boolean"}},
                              "end": "</n>"}]}},
    ):  # fmt: skip
        matcher = compiled(compiler, backend, structural_tag={"type": "structural_tag", **tag}).grammar.matcher()
        assert matcher.accept(vocabulary.encode(b"free {text} "))
        assert matcher.accept(vocabulary.encode(b"<n>"))
        first = {vocabulary.pieces[i][:1] for i in allowed_ids(matcher, vocabulary)}
        assert first <= {bytes([byte]) for byte in b"tf \n\t\r"}
        assert matcher.accept(vocabulary.encode(b"true</n> and on"))
        assert vocabulary.eos_token_ids[0] in allowed_ids(matcher, vocabulary)


def test_options_of_json(compiler: Compiler) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    chance, vocabulary = random.Random(4), tiny_vocabulary()
    for backend in ("llguidance", "xgrammar"):
        grammar = compiled(
            compiler, backend, json=schema, disable_any_whitespace=True, disable_additional_properties=True
        ).grammar
        for _ in range(10):
            made = sample(grammar, vocabulary, chance)
            assert made is not None and re.fullmatch(r'\{"a": ?-?\d+\}', made[1].decode()), made
    grammar = compiled(compiler, "llguidance", json=schema, whitespace_pattern=r"[\n]?").grammar
    for _ in range(10):
        made = sample(grammar, vocabulary, chance)
        assert made is None or set(re.sub(r'"[^"]*"', "", made[1].decode())) & set(" \t\r") == set()


# ---- auto


def test_auto_goes_on_to_the_next_with_the_reason_logged(
    compiler: Compiler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = {"type": "structural_tag", "format": {"type": "const_string", "value": "hi"}}
    form = StructuredOutputsParams(structural_tag=tag)
    with caplog.at_level(logging.INFO, "octavo.structured.compile"):
        made = compiler.compile(form, AUTO_ORDER).result(150)
    assert made.backend.name == "xgrammar" and sample(made.grammar, tiny_vocabulary(), random.Random(0))[1] == b"hi"  # type: ignore[index]
    assert "compiled by xgrammar: llguidance: a structural tag's format 'const_string'" in caplog.text
    with pytest.raises(InvalidRequest) as refused:
        compiler.compile(StructuredOutputsParams(json={"not": {"type": "string"}}), AUTO_ORDER).result(150)
    for backend in AUTO_ORDER:
        assert f"{backend}: 'not' (at #)" in str(refused.value)


def test_a_backend_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compile._HOMES, "outlines", "octavo.structured.no_such_module:Backend")
    compiler = Compiler(tiny_vocabulary)
    with pytest.raises(InvalidRequest, match=r"outlines-core is not installed \(pip install 'octavo\[grammars\]'\)"):
        compiler.compile(StructuredOutputsParams(regex="a"), ("outlines",)).result(20)
    compiler.shutdown()


# ---- hostile forms


def memory() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10  # type: ignore[index]  # MiB


def nested(depth: int) -> str:
    return "(" * depth + "a" + ")" * depth


HOSTILE: dict[str, dict[str, Any]] = {
    "exponential regex": {"regex": "(x+x+)+y" * 20 + "(.*a.{30}){4}"},
    "repeated repeats": {"regex": "((a{1,1000}){1,1000}){1,1000}"},
    "many states": {"regex": "(.*[ab].{14}c){6}"},
    "deep regex": {"regex": nested(20_000)},
    "left recursion": {"grammar": 'start: start "a" | "a"'},
    "left recursion in EBNF": {"grammar": 'root ::= root "a" | "a"'},
    "recursion alone": {"grammar": "start: start"},
    "ambiguity": {"grammar": 'start: start start start | "a" | ""'},
    "doubling references": {
        "json": {
            "$defs": {
                **{f"d{i}": {"type": "object", "properties": {key: {"$ref": f"#/$defs/d{i + 1}"} for key in "ab"},
                             "required": ["a", "b"]} for i in range(40)},
                "d40": {"type": "string"},
            },
            "$ref": "#/$defs/d0",
        }
    },
    "product of unions": {
        "json": {"allOf": [{"anyOf": [{"properties": {f"p{i}": {"type": "string"}}},
                                      {"properties": {f"q{i}": {"type": "integer"}}}]} for i in range(24)]}
    },
    "long string": {"json": {"type": "string", "minLength": 10**8}},
    "long array": {"json": {"type": "array", "minItems": 10**8}},
    "many properties": {
        "json": {
            "type": "object",
            "properties": {f"p{i}": {"type": "string", "pattern": "(a|b)*a(a|b){14}"} for i in range(500)},
        }
    },
    "intersection of patterns": {
        "json": {"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}c"} for i in range(4, 24)]}
    },
    "many choices": {"choice": [f"{i:06}" * 8 for i in range(10_000)]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *(("llguidance", name) for name in HOSTILE),
        *(("outlines", name) for name in ("repeated repeats", "many states", "deep regex", "many choices")),
        *(("xgrammar", name) for name in ("left recursion in EBNF", "long array", "deep regex")),
    ],
)
def test_hostile_forms_are_bounded(compiler: Compiler, backend: str, name: str) -> None:
    """Compiled or refused, in bounded time and memory; so is every step, and an engine's thread goes on meanwhile."""
    began, before = time.monotonic(), memory()
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.01):
            ticks.append(time.monotonic())

    beside = threading.Thread(target=tick)
    beside.start()
    try:
        grammar = compiled(compiler, backend, **HOSTILE[name]).grammar
    except InvalidRequest as error:
        assert len(str(error)) < 1000
    else:
        matcher, chance, worst = grammar.matcher(), random.Random(5), 0.0
        for _ in range(40):
            start = time.monotonic()
            try:
                allowed = [i for i in allowed_ids(matcher, tiny_vocabulary()) if tiny_vocabulary().pieces[i]]
                allowed = [i for i in allowed if i not in tiny_vocabulary().eos_token_ids]
                if not allowed or not matcher.accept([chance.choice(allowed)]):
                    break
            except MatcherFailed:
                break
            worst = max(worst, time.monotonic() - start)
        assert worst < 2.0, f"one step took {worst} s"
    finally:
        done.set()
        beside.join()
    assert time.monotonic() - began < SECONDS + 12  # and the start of a new child
    assert memory() - before < 600
    gaps = [later - earlier for earlier, later in pairwise(ticks)]
    assert max(gaps, default=0.0) < 2.0, "the interpreter stood still"


def test_after_a_form_that_took_too_long_the_next_is_compiled(compiler: Compiler) -> None:
    with pytest.raises(InvalidRequest, match="compiling it takes more than"):
        compiled(compiler, "outlines", regex="(.*[ab].{14}c){6}")
    assert compiled(compiler, "outlines", regex="[ab]c").grammar.matcher().accept(tiny_vocabulary().encode(b"ac"))


def test_nested_lm_format_enforcer_patterns_take_a_second_at_most(compiler: Compiler) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequest):
        compiled(compiler, "lm-format-enforcer", regex="((a|b)*a(a|b){20}){4}")
    assert lm_format_enforcer.COMPILE_SECONDS <= 1 and time.monotonic() - began < 20


def test_schemas_are_checked_by_jsonschema_itself() -> None:
    """The schemas of the suite that are honoured are well-formed, so that its verdicts mean something."""
    from tests.structured.test_schemas import SCHEMAS

    for name, (schema, refused_for) in SCHEMAS.items():
        if refused_for is None and name != "required twice":
            jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
