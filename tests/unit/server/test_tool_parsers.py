"""Tool call formats: what texts mean, that cutting them changes nothing, and that no text does harm."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigurationError
from octavo.server.output_parser import (
    Reasoning,
    Text,
    ToolCallArguments,
    ToolCallStart,
    detect_parsers,
    make_output_parser,
)
from octavo.server.tool_parsers import TOOL_PARSERS
from octavo.tokenization.chat_template import render_chat
from tests.unit.server.parsing import NOW, TOOLS, Plain, Setup

V3 = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
V3_CALL = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
V31_CALL = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
KIMI = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
KIMI_CALL = "<|tool_call_begin|>functions.{}<|tool_call_argument_begin|>{}<|tool_call_end|>"
HARMONY_CALL = "<|start|>assistant<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"
PARIS = '{"city": "Paris"}'
HOSTILE = (
    '{"city": "a } ] \\" \\\\ </tool_call> [TOOL_CALLS] <|call|> <｜tool▁call▁end｜> <|tool_call_end|> \\u00e9é\\n"}'
)


def call(name: str, arguments: str = "{}") -> Plain:
    return ("call", name, arguments)


WEATHER_IN_PARIS = call("get_weather", PARIS)

CASES: list[tuple[str, str, list[Plain]]] = [
    # --- hermes ---
    ("hermes", "just text, a < b, {x}", [("text", "just text, a < b, {x}")]),
    ("hermes", "  white \n", [("text", "  white \n")]),
    (
        "hermes",
        'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": ' + PARIS + "}\n</tool_call>",
        [("text", "Let me see."), WEATHER_IN_PARIS],
    ),
    (
        "hermes",
        '\n\n<tool_call>{"name": "now"}</tool_call>\n<tool_call>{"arguments": {"a": {"b": [1, {}]}}, "name": "x"}'
        "</tool_call>\n Done. \n",
        [call("now"), call("x", '{"a": {"b": [1, {}]}}'), ("text", "Done. \n")],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": ' + HOSTILE + "}</tool_call>", [call("f", HOSTILE)]),
    ("hermes", '<tool_call>[{"name": "f"}, {"name": "g"}]</tool_call>', [call("f"), call("g")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}', [call("f", '{"a": "é"}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}', [call("f")]),
    ("hermes", '<tool_call>{"type": "function", "name": "f", "id": 3, "parameters": {}, "x": [1]}', [call("f")]),
    ("hermes", '<tool_call>{"name": "f", "args": {"a": 1}}', [("text", '<tool_call>{"name": "f", "args": {"a": 1}}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}}]\n</tool_call>!', [call("f"), ("text", "!")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_c', [call("f")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"p": "C:\\dir\n"}}', [call("f", '{"p": "C:\\\\dir\\n"}')]),
    ("hermes", "The `<tool_call>` tag is used", [("text", "The `<tool_call>` tag is used")]),
    ("hermes", "a </tool_call> b <tool_cal", [("text", "a </tool_call> b <tool_cal")]),
    ("hermes", 'x <tool_call> {"name": "f" oops', [("text", 'x <tool_call> {"name": "f" oops')]),
    ("hermes", '<tool_call>{"name": 5}</tool_call>', [("text", '<tool_call>{"name": 5}</tool_call>')]),
    ("hermes", '<tool_call>{"name": ""}', [("text", '<tool_call>{"name": ""}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {a}}</tool_call>x', [call("f", "{a}}"), ("text", "x")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "cut of', [call("f", '{"a": "cut of')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\', [call("f", '{"a": "\\')]),
    (
        "hermes",
        '<tool_call>{"nam<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        [("text", '<tool_call>{"nam<tool_call>{"name": "f", "arguments": {}}</tool_call>')],
    ),
    (
        "hermes",
        '<tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>',
        [("text", "<tool_call>"), call("f")],
    ),
    # --- granite ---
    (
        "granite",
        '<|tool_call|>[{"name": "get_weather", "arguments": ' + PARIS + '}, {"name": "now", "arguments": {}}]',
        [WEATHER_IN_PARIS, call("now")],
    ),
    ("granite", '<tool_call>[{"name": "now", "arguments": {}}] ', [call("now")]),
    ("granite", '<|tool_call|>[{"name": "now"}, oops] hm', [call("now"), ("text", ", oops] hm")]),
    # --- llama3_json ---
    ("llama3_json", '{"name": "get_weather", "parameters": ' + PARIS + "}", [WEATHER_IN_PARIS]),
    (
        "llama3_json",
        '<|python_tag|>{"type": "function", "name": "now", "parameters": {}}; '
        '{"name": "get_weather", "arguments": ' + PARIS + "}",
        [call("now"), WEATHER_IN_PARIS],
    ),
    ("llama3_json", '{"name": "Bob", "parameters": {}}', [("text", '{"name": "Bob", "parameters": {}}')]),
    ("llama3_json", ' {"name": "now"} {"now": {', [("text", ' {"name": "now"} {"now": {')]),
    ("llama3_json", 'f() { return {"a": {}}; }', [("text", 'f() { return {"a": {}}; }')]),
    ("llama3_json", '{"name": "now", "parameters": "{}"}', [("text", '{"name": "now", "parameters": "{}"}')]),
    ("llama3_json", '{"name": "now", "parameters": {"a": +}}', [call("now", '{"a": '), ("text", "+}}")]),
    # --- pythonic ---
    (
        "pythonic",
        "[get_weather(city=\"Paris)\", days=-3, exact=True, note=None, tags=['a', (1, 2.5)], "
        "detail={'k': \"it's\"}), now()]",
        [
            call(
                "get_weather",
                '{"city": "Paris)", "days": -3, "exact": true, "note": null, "tags": ["a", [1, 2.5]], '
                '"detail": {"k": "it\'s"}}',
            ),
            call("now"),
        ],
    ),
    ("pythonic", "<|python_start|>[now()]<|python_end|>", [call("now")]),
    ("pythonic", "[ now( ) , get_weather ( )]", [call("now"), ("text", " , get_weather ( )]")]),
    ("pythonic", '[get_weather(city="""a "b"\nc\\"""")]', [call("get_weather", '{"city": "a \\"b\\"\\nc\\""}')]),
    ("pythonic", "See [1], [x](y), [other()]", [("text", "See [1], [x](y), [other()]")]),
    ("pythonic", "[now(1)] [now(a=b)] [now(**{})]", [("text", "[now(1)] [now(a=b)] [now(**{})]")]),
    ("pythonic", "[get_weather(city='Par", [("text", "[get_weather(city='Par")]),
    ("pythonic", "[now(a='\\d')]", [call("now", '{"a": "\\\\d"}')]),
    # --- mistral ---
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": ' + PARIS + '}, {"name": "now", "arguments": {}}]',
        [WEATHER_IN_PARIS, call("now")],
    ),
    (
        "mistral",
        "Sure.[TOOL_CALLS]get_weather[ARGS]" + PARIS + '[TOOL_CALLS]now[CALL_ID]abcDEF123[ARGS]{}[TOOL_CALLS]f{"a":1}',
        [("text", "Sure."), WEATHER_IN_PARIS, call("now"), call("f", '{"a":1}')],
    ),
    ("mistral", "[TOOL_CALLS]f[ARGS]" + HOSTILE, [call("f", HOSTILE)]),
    ("mistral", "[TOOL_CALLS] are [TOOL_CALLS", [("text", "[TOOL_CALLS] are [TOOL_CALLS")]),
    ("mistral", "[TOOL_CALLS]f[ARGS]{]rest", [call("f", "{"), ("text", "]rest")]),
    # --- qwen3_coder ---
    (
        "qwen3_coder",
        "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n New\nYork \n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n<parameter=detail>\n{'a': True, 'b': None}\n</parameter>\n"
        "<parameter=exact>\nTrue\n</parameter>\n<parameter=note>\nnull\n</parameter>\n<parameter=other>\nplain\n</parameter>\n</function>\n</tool_call>\n",
        [
            ("text", "I look."),
            call(
                "get_weather",
                '{"city": " New\\nYork ", "days": 3, "detail": {"a": true, "b": null}, "exact": true, "note": null, '
                '"other": "plain"}',
            ),
        ],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call><function=f></function></tool_call>",
        [call("now"), call("f")],
    ),
    (
        "qwen3_coder",
        "<function=get_weather>\n<parameter=city>\n3 < 4 </function> \"q\" \\ \n\n</parameter>\n</function>",
        [call("get_weather", '{"city": "3 < 4 </function> \\"q\\" \\\\ \\n"}')],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</function>\n</tool_call>\nok",
        [WEATHER_IN_PARIS, ("text", "ok")],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n",
        [call("get_weather", '{"city": "Paris\\n')],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=days>\nmany\n</parameter>\n</func",
        [call("get_weather", '{"days": "many"}')],
    ),
    ("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=ci", [call("get_weather", "")]),
    ("qwen3_coder", "<function=other> <function=", [("text", "<function=other> <function=")]),
    ("qwen3_coder", "<tool_call> is <function= here", [("text", "<tool_call> is <function= here")]),
    # --- glm45 ---
    (
        "glm45",
        "\nHm.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>São \"P\"\n</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        [("text", "\nHm."), call("get_weather", '{"city": "São \\"P\\"\\n", "days": 3}'), call("now")],
    ),
    (
        "glm45",
        "<tool_call>get_weather<arg_key>tags</arg_key><arg_value>[1, \"x\"]</arg_value></tool_call>",
        [call("get_weather", '{"tags": [1, "x"]}')],
    ),
    ("glm45", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Pa", [call("get_weather", '{"city": "Pa')]),
    ("glm45", "a <tool_call> tag\n<tool_call>x</", [("text", "a <tool_call> tag\n<tool_call>x</")]),
    # --- deepseek_v3 ---
    (
        "deepseek_v3",
        "Ok." + V3.format(V3_CALL.format("get_weather", PARIS) + "\n" + V3_CALL.format("now", "{}")),
        [("text", "Ok."), WEATHER_IN_PARIS, call("now")],
    ),
    (
        "deepseek_v3",
        V3.format(V31_CALL.format("get_weather", PARIS) + V31_CALL.format("function", HOSTILE)),
        [WEATHER_IN_PARIS, call("function", HOSTILE)],
    ),
    (
        "deepseek_v3",
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{bad}<｜tool▁call▁end｜>x",
        [call("f", "{bad}"), ("text", "x")],
    ),
    ("deepseek_v3", "<｜tool▁call▁begin｜>f g<｜tool▁sep｜>", [("text", "<｜tool▁call▁begin｜>f g<｜tool▁sep｜>")]),
    # --- kimi_k2 ---
    (
        "kimi_k2",
        "I see. " + KIMI.format(KIMI_CALL.format("get_weather:0", PARIS) + KIMI_CALL.format("now:1", "{}")),
        [("text", "I see."), WEATHER_IN_PARIS, call("now")],
    ),
    ("kimi_k2", KIMI.format(KIMI_CALL.format("f:0", HOSTILE)), [call("f", HOSTILE)]),
    ("kimi_k2", KIMI.format(KIMI_CALL.format("f:0", '{"a": x}')), [call("f", '{"a": x}')]),
    ("kimi_k2", "<|tool_call_begin|>no call", [("text", "<|tool_call_begin|>no call")]),
    # --- openai (harmony) ---
    (
        "openai",
        "<|channel|>analysis<|message|>I must look.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        + HARMONY_CALL.format("get_weather", PARIS)
        + "<|start|>assistant<|channel|>commentary to=functions.now json<|message|>",
        [("reasoning", "I must look."), ("text", "I look."), WEATHER_IN_PARIS, call("now")],
    ),
    (
        "openai",
        " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>" + HOSTILE,
        [call("get_weather", HOSTILE)],
    ),
    (
        "openai",
        "<|channel|>final<|message|>Hello <|return|>",
        [("text", "Hello")],
    ),
    ("openai", "no markers <at> all", [("text", "no markers <at> all")]),
    ("openai", "<|channel|>final<|mess", []),
    ("openai", "<|channel|>analysis to=python code<|message|>print(1)<|call|>", [("reasoning", "print(1)")]),
    ("openai", "<|channel|>commentary to=now<|message|>{}<|call|>", [call("now")]),
    ("openai", HARMONY_CALL.format("f", '{"a": oops}'), [call("f", '{"a": oops}')]),
    ("openai", "<|channel|>final " + "x" * 600, [("text", "<|channel|>final " + "x" * 600)]),
]  # fmt: skip

FORMATS = sorted({name for name, _, _ in CASES})


@pytest.mark.parametrize(("name", "text", "expected"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_text_is_what_it_should_be_however_it_is_cut(name: str, text: str, expected: list[Plain]) -> None:
    assert Setup(name).check(text) == expected


def test_every_format_has_cases() -> None:
    classes = {TOOL_PARSERS.find(name) for name, _, _ in CASES}
    assert classes == {TOOL_PARSERS.find(name) for name in TOOL_PARSERS.names}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "openai"])
def test_no_marker_contains_another(name: str) -> None:
    """The one that is complete first would hide the other."""
    parser = TOOL_PARSERS.find(name)
    markers = {*parser.openings, *parser.closings, *parser.dropped}
    assert not [(a, b) for a in markers for b in markers if a != b and a in b]


# --- streaming ---


def events_of(name: str, *pieces: str) -> list[Any]:
    """What each piece gives, and then the end."""
    parser = make_output_parser(name, None, None, TOOLS, False)
    return [*(parser.push(piece) for piece in pieces), parser.finish()]


def test_text_is_not_held_back_without_need() -> None:
    assert events_of("hermes", "Hello", " wor", "ld <b", "> ") == [
        [Text("Hello")], [Text(" wor")], [Text("ld <b")], [Text(">")], [Text(" ")],
    ]  # fmt: skip


def test_part_of_a_marker_is_not_shown_until_it_is_none() -> None:
    assert events_of("hermes", "a <tool", "_ca", "t>") == [[Text("a")], [], [Text(" <tool_cat>")], []]


@pytest.mark.parametrize(
    ("name", "before", "argument_pieces", "fragments"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": ', ['{"a', '": "x'], ['{"a', '": "x']),
        ("llama3_json", '{"name": "now", "parameters": ', ['{"a', '": "x'], ['{"a', '": "x']),
        ("mistral", "[TOOL_CALLS]f", ['{"a', '": "x'], ['{"a', '": "x']),
        ("kimi_k2", "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>", ['{"a', "x"], ['{"a', "x"]),
        ("openai", "<|channel|>commentary to=functions.f<|message|>", ['{"a', "x"], ['{"a', "x"]),
        (
            "qwen3_coder",
            "<tool_call>\n<function=get_weather>\n",
            ["<parameter=city>\nNew", ' "Y\n', "ork"],
            ['{"city": "New', ' \\"Y', "\\nork"],
        ),
        (
            "glm45",
            "<tool_call>get_weather\n",
            ["<arg_key>city</arg_key>\n<arg_value>New", ' "Y\n', "ork"],
            ['{"city": "New', ' \\"Y\\n', "ork"],
        ),
    ],
)
def test_arguments_stream(name: str, before: str, argument_pieces: list[str], fragments: list[str]) -> None:
    _, *given_out, _ = events_of(name, before, *argument_pieces)
    assert [[e.json_fragment for e in events if isinstance(e, ToolCallArguments)] for events in given_out] == [
        [fragment] for fragment in fragments
    ]


def test_pythonic_calls_come_out_one_by_one() -> None:
    first, second, last = events_of("pythonic", "[now(), get_wea", "ther(days=1)")
    assert [type(e) for e in first] == [ToolCallStart, ToolCallArguments] and last == []
    assert [type(e) for e in second] == [ToolCallStart, ToolCallArguments]


def test_ids_are_the_formats_own_where_it_has_them() -> None:
    def ids(name: str, text: str) -> list[str]:
        return [e.id for events in events_of(name, text) for e in events if isinstance(e, ToolCallStart)]

    assert ids("kimi_k2", KIMI_CALL.format("f:12", "{}")) == ["functions.f:12"]
    given, made = ids("mistral", '[TOOL_CALLS]f[CALL_ID]abc123XYZ[ARGS]{}[TOOL_CALLS][{"name": "f"}]')
    assert given == "abc123XYZ" and len(made) == 9 and made.isalnum() and made.isascii()
    assert all(i.startswith("call_") for i in ids("hermes", '<tool_call>{"name": "f"}'))


# --- rendered by templates, and parsed back ---

_ARGS = "(tc.function.arguments | tojson)"
# How each model's template writes an assistant's calls.
TEMPLATES = {
    "hermes": """{{- '<tool_call>\n{"name": "' + tc.function.name + '", "arguments": ' }}{{- """ + _ARGS + """ }}
    {{- '}\n</tool_call>' }}{{- '' if loop.last else '\n' }}""",
    "llama3_json": """{{- '{"name": "' + tc.function.name + '", "parameters": ' }}{{- """ + _ARGS + """ }}
    {{- '}' }}{{- '' if loop.last else '; ' }}""",
    "mistral": """{{- '[TOOL_CALLS] [' if loop.first else ', ' }}
    {{- '{"name": "' + tc.function.name + '", "arguments": ' }}
    {{- """ + _ARGS + """ + ', "id": "abcdefghi"}' }}{{- ']' if loop.last }}""",
    "mistral v11": """{{- '[TOOL_CALLS]' + tc.function.name + '[ARGS]' + """ + _ARGS + """ }}""",
    "deepseek_v3": """{{- '<｜tool▁calls▁begin｜>' if loop.first else '\n' }}
    {{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + tc.function.name + '\n```json\n' + """ + _ARGS + """ }}
    {{- '\n```<｜tool▁call▁end｜>' }}{{- '<｜tool▁calls▁end｜>' if loop.last }}""",
    "kimi_k2": """{{- '<|tool_calls_section_begin|>' if loop.first }}
    {{- '<|tool_call_begin|>functions.' + tc.function.name }}
    {{- ':' ~ loop.index0 ~ '<|tool_call_argument_begin|>' + """ + _ARGS + """ + '<|tool_call_end|>' }}
    {{- '<|tool_calls_section_end|>' if loop.last }}""",
    "openai": """{{- '<|start|>assistant<|channel|>commentary to=functions.' + tc.function.name }}
    {{- ' <|constrain|>json<|message|>' + """ + _ARGS + """ + '<|call|>' }}""",
    "granite": """{{- '<|tool_call|>[' if loop.first else ', ' }}
    {{- '{"name": "' + tc.function.name + '", "arguments": ' }}
    {{- """ + _ARGS + """ + '}' }}{{- ']' if loop.last }}""",
    "qwen3_coder": """{{- '\n<tool_call>\n<function=' + tc.function.name + '>\n' }}
    {%- for name, value in tc.function.arguments | items %}
        {{- '<parameter=' + name + '>\n' }}{{- value if value is string else value | tojson }}{{- '\n</parameter>\n' }}
    {%- endfor %}{{- '</function>\n</tool_call>' }}""",
    "glm45": """{{- '\n<tool_call>' + tc.function.name + '\n' }}
    {%- for name, value in tc.function.arguments | items %}
        {{- '<arg_key>' + name + '</arg_key>\n<arg_value>' }}{{- value if value is string else value | tojson }}
        {{- '</arg_value>\n' }}
    {%- endfor %}{{- '</tool_call>' }}""",
}  # fmt: skip
_CALLS = "{% for m in messages if m.tool_calls %}{% for tc in m.tool_calls %}$CALL{% endfor %}{% endfor %}"

_strings = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    ['"}', "</tool_call>", "\\u00e9\\", "{[", "\n\n x \n", "null", "3", "<|call|>", "é😀", "[TOOL_CALLS]"]
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_strings, inner, max_size=3),
    max_leaves=6,
)
_arguments = st.fixed_dictionaries(
    {},
    optional={
        "city": _strings,
        "days": st.integers(),
        "detail": st.dictionaries(_strings, _values, max_size=3),
        "tags": st.lists(_values, max_size=3),
        "exact": st.booleans(),
    },
)


class NoTokens:
    """All that rendering asks of a tokenizer."""

    special_tokens: dict[str, str] = {}  # noqa: RUF012


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=8, deadline=None, database=None, derandomize=True)
@given(calls=st.lists(st.tuples(st.sampled_from(["get_weather", "now"]), _arguments), min_size=1, max_size=3))
def test_rendered_calls_are_parsed_back(name: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    if name == "qwen3_coder":  # has no way to write these within a value
        calls = [c for c in calls if "</parameter>" not in str(c) and "</function>\n</tool_call>" not in str(c)]
    tool_calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    message = {"role": "assistant", "content": "", "tool_calls": tool_calls}
    template = _CALLS.replace("$CALL", TEMPLATES[name])
    text = render_chat(template, [message], NoTokens(), add_generation_prompt=False)  # type: ignore[arg-type]
    # `now` has no parameters in its schema; give both functions one, so that types are known.
    tools = [{"type": "function", "function": {**TOOLS[0]["function"], "name": n}} for n in ("get_weather", "now")]
    parsed = Setup(name.partition(" ")[0], tools=tools).check(text, every_cut=False)
    assert [(kind, called, json.loads(arguments)) for kind, called, arguments in parsed] == [
        ("call", n, a) for n, a in calls
    ]


# --- no text does harm ---

_SNIPPETS = [
    "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', "\\", ",", ":", "\n", " ", "<", "<|", "name", '"name"',
    "arguments", "[TOOL_CALLS]", "[ARGS]", "<function=", "<parameter=", "</parameter>", "</function>", ">", "<arg_key>",
    "</arg_key>", "<arg_value>", "</arg_value>", "<|call|>", "<|message|>", "<|start|>", "<|channel|>", "(", ")", "=",
    "'", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<|tool_call_begin|>", "null", "1", "now", "get_weather", "\x00",
]  # fmt: skip
_MARK = "§"


def mutated(text: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        stop = min(len(text), start + chance.randint(0, 8))
        kind = chance.randrange(5)
        if kind == 0:
            text = text[:start] + text[stop:]
        elif kind == 1:
            text = text[:start]
        elif kind == 2:
            text = text[:stop] + text[start:]
        else:
            text = text[:start] + chance.choice(_SNIPPETS) + text[start:]
    return text


@pytest.mark.parametrize("name", FORMATS)
def test_no_mutation_raises_or_depends_on_cuts(name: str) -> None:
    chance = random.Random(name)
    texts = [text for known, text, _ in CASES if known == name]
    for round_number in range(40):
        text = mutated(chance.choice(texts), chance)
        Setup(name).check(text, num_random=2, seed=round_number, every_cut=False)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "openai"])  # whose headers are free text
def test_what_is_put_between_is_never_lost(name: str) -> None:
    """A foreign character anywhere breaks markup, and then stands in the text, or in a name or arguments."""
    for text in [text for known, text, _ in CASES if known == name]:
        if '"type": ' in text or text.endswith("<parameter=ci"):
            continue  # keys that say nothing; a parameter cut off in its name
        for place in range(len(text) + 1):
            results = Setup(name).run([text[:place] + _MARK + text[place:]])
            shown = "".join(part for result in results for part in result[1:])
            assert _MARK in shown, text[:place] + _MARK + text[place:]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "piece",
    ["{", "[", "<tool_call>", '<tool_call>{"arguments":"', '{"name":"now",', "[now(a=[", "\n", "[now(a=-", "<|"],
)
def test_long_repetition_is_read_in_time_that_grows_with_it(name: str, piece: str) -> None:
    text = piece * 3000
    results = Setup(name).run([text[i : i + 50] for i in range(0, len(text), 50)])
    assert len("".join(part for result in results for part in result[1:])) >= len(text) - 2 * len(piece)


def test_deep_nesting_is_only_passed_on() -> None:
    deep = '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}"
    assert Setup("hermes").run(['<tool_call>{"name": "f", "arguments": ' + deep + "}"]) == [call("f", deep)]
    text = "<function=get_weather><parameter=tags>" + "[" * 50_000 + "</parameter></function>"
    assert json.loads(Setup("qwen3_coder").run([text])[0][2]) == {"tags": "[" * 50_000}


# --- types of bare values ---


@pytest.mark.parametrize(
    ("schema", "written", "expected"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "integer"}, "5", 5),
        ({"type": "integer"}, "5.0", 5),
        ({"type": "integer"}, "five", "five"),
        ({"type": "number"}, "5", 5),
        ({"type": "boolean"}, "TRUE", True),
        ({"type": "array"}, "('a', None)", ["a", None]),
        ({"type": "object"}, '{"a": [1]}', {"a": [1]}),
        ({"type": "object"}, "{'a': {1, 2}}", "{'a': {1, 2}}"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "5", 5),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "x", "x"),
        ({"$ref": "#/$defs/Kind"}, "5", "5"),
        ({"$ref": "#/$defs/Loop"}, "5", 5),
        ({"enum": ["a", "5"]}, "5", "5"),
        ({"const": 5}, "5", 5),
        ({}, "5", 5),
        ({}, "NaN", "NaN"),
        ({}, "'x'", "'x'"),
        ({}, " x ", " x "),
        ({"type": 7}, "5", 5),
        ("no schema", "x", "x"),
    ],
)
def test_bare_values_take_the_type_that_the_schema_says(schema: Any, written: str, expected: Any) -> None:
    definitions = {"Kind": {"type": "string"}, "Loop": {"$ref": "#/$defs/Loop"}}
    parameters = {"type": "object", "properties": {"a": schema}, "$defs": definitions}
    for tool in (
        {"type": "function", "function": {"name": "f", "parameters": parameters}},
        {"name": "f", "parameters": parameters},
    ):
        text = f"<function=f><parameter=a>\n{written}\n</parameter></function>"
        [(_, _, arguments)] = Setup("qwen3_coder", tools=[tool]).run([text])
        value = json.loads(arguments)["a"]
        assert value == expected and type(value) is type(expected)


# --- choosing ---


def test_without_tools_calls_are_text() -> None:
    text = '<tool_call>{"name": "now"}</tool_call>'
    assert Setup("hermes", tools=[]).run([text]) == [("text", text)]
    assert Setup(None).run([text]) == [("text", text)]
    assert Setup("openai", tools=[]).run([HARMONY_CALL.format("now", "{}")]) == [("text", "{}")]
    assert Setup(None, "gpt-oss").run([HARMONY_CALL.format("now", "{}")]) == [("text", "{}")]


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"'hermez' is unknown; the nearest known are hermes"):
        make_output_parser("hermez", None, None, TOOLS, False)
    with pytest.raises(ConfigurationError, match=r"--tool-call-parser 'no.such:Thing' cannot be loaded"):
        make_output_parser("no.such:Thing", None, None, TOOLS, False)


class Shouting:
    """A third party's format: what is in capitals is a call."""

    markers = ("!",)

    def __init__(self, tools: Any) -> None:
        self.calls = 0

    def push(self, text: str) -> list[Any]:
        if not text.isupper():
            return [Text(text)]
        self.calls += 1
        return [ToolCallStart(self.calls - 1, f"s{self.calls}", text), ToolCallArguments(self.calls - 1, "{}")]

    def finish(self) -> list[Any]:
        return []


def test_a_parser_of_your_own_is_named_by_module_and_class() -> None:
    parser = make_output_parser(f"{__name__}:Shouting", "qwen3", None, TOOLS, True)
    assert parser.push("hm</think>") == [Reasoning("hm")]
    assert parser.push("hello") + parser.push("NOW") == [
        Text("hello"), ToolCallStart(0, "s1", "NOW"), ToolCallArguments(0, "{}"),
    ]  # fmt: skip
    TOOL_PARSERS.register("shouting", f"{__name__}:Shouting")
    try:
        assert TOOL_PARSERS.find("shouting") is Shouting
    finally:
        del TOOL_PARSERS._known["shouting"]


class Vocabulary:
    """A tokenizer of a few tokens, some special."""

    def __init__(self, ordinary: list[str], special: list[str]) -> None:
        self.tokens = [*ordinary, *special]
        self.special_ids = frozenset(range(len(ordinary), len(self.tokens)))

    def convert_token_to_id(self, token: str) -> int | None:
        return self.tokens.index(token) if token in self.tokens else None


def test_special_tokens_are_kept_where_markers_are_special() -> None:
    vocabulary = Vocabulary(["<tool_call>", "</tool_call>"], ["[TOOL_CALLS]", "<|channel|>"])
    needs = {
        (name, bool(tools)): make_output_parser(name, None, vocabulary, tools, False).needs_special_tokens
        for name in ("hermes", "mistral", "openai", "kimi_k2")
        for tools in (TOOLS, [])
    }
    assert {key for key, needed in needs.items() if needed} == {("mistral", True), ("openai", True), ("openai", False)}
    assert not make_output_parser(None, None, vocabulary, TOOLS, False).needs_special_tokens


# What gives each family away, in the words of its own template.
HERMES_WORDS = 'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>'
DETECTED = [
    ("{{- '<|im_start|>' }}" + HERMES_WORDS, ("hermes", None)),
    (HERMES_WORDS + "{% if '</think>' in content %}{{- '<think>\\n\\n</think>\\n\\n' }}", ("hermes", "qwen3")),
    ("{{- '<|im_start|>assistant\\n<think>\\n' }}", (None, "qwen3")),
    ("<tool_call>\\n<function=example_function_name>\\n<parameter=x>", ("qwen3_coder", None)),
    ("[gMASK]<sop><tool_call>{name}\n<arg_key>{k}</arg_key>{{ '</think>' }}", ("glm45", "glm45")),
    ("{{ '[AVAILABLE_TOOLS]' }}{{ '[TOOL_CALLS]' }}", ("mistral", None)),
    ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}{{ '[THINK]' }}", ("mistral", "mistral")),
    ("'<｜Assistant｜><｜tool▁calls▁begin｜>' ... '<｜Assistant｜><think>\\n'", ("deepseek_v3", "deepseek_r1")),
    (
        "'<｜tool▁calls▁begin｜>' '<｜Assistant｜>' {% if thinking %}'<think>'{% else %}'</think>'",
        ("deepseek_v3", "deepseek_v3"),
    ),
    ("<|im_middle|>{{ m }}<|tool_calls_section_begin|><think></think>", ("kimi_k2", "kimi_k2")),
    ("<|start|>assistant<|channel|>final<|message|>", ("openai", "openai_gptoss")),
    ("respond with <|tool_call|> followed by a JSON list. Write 'Here is my thought process:'", ("granite", "granite")),
    ("[func_name1(params_name1=params_value1), func_name2(params)]", ("pythonic", None)),
    ('Respond in the format {"name": function name, "parameters": dictionary', ("llama3_json", None)),
    ("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", (None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("template", "expected"), DETECTED)
def test_the_template_tells_the_parsers(template: str, expected: tuple[str | None, str | None]) -> None:
    found = detect_parsers(template, Vocabulary([], ["[TOOL_CALLS]"]), "mistral-gpt-oss")
    assert found == expected
    make_output_parser(*found, None, [NOW], False)  # each name is registered


def test_without_a_template_the_vocabulary_and_the_name_tell() -> None:
    assert detect_parsers(None, Vocabulary([], ["[TOOL_CALLS]", "[THINK]"]), "x") == ("mistral", "mistral")
    assert detect_parsers(None, Vocabulary(["a"], []), "org/GPT-OSS-20b") == ("openai", "openai_gptoss")
    assert detect_parsers(None, None, "org/llama") == (None, None)
