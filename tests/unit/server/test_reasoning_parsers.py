"""Reasoning formats: thoughts apart from the answer, however the text is cut, and calls found in what is left."""

from __future__ import annotations

import random

import pytest

from octavo.errors import ConfigurationError
from octavo.server.output_parser import Reasoning, Text, make_output_parser, prompt_ends_in_reasoning
from octavo.server.reasoning_parsers import REASONING_PARSERS
from tests.unit.server.parsing import Plain, Setup
from tests.unit.server.test_tool_parsers import mutated

KIMI = "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
HM, YES = ("reasoning", "Hm."), ("text", "Yes")

# (parser, prompt opened the thoughts, text, expected)
CASES: list[tuple[str, bool, str, list[Plain]]] = [
    (
        "qwen3",
        False,
        "<think>\nHm, 2 < 3.\n\nOk.\n</think>\n\nYes.\n",
        [("reasoning", "Hm, 2 < 3.\n\nOk."), ("text", "Yes.\n")],
    ),
    ("qwen3", True, "\nHm.\n</think>\n\nYes", [HM, YES]),
    ("qwen3", True, "<think>\nHm.</think>Yes", [HM, YES]),
    ("qwen3", True, "cut off\n", [("reasoning", "cut off\n")]),
    ("qwen3", True, "cut off </thin", [("reasoning", "cut off </thin")]),
    ("qwen3", False, "<think>\n\n</think>\n\nYes", [YES]),
    ("qwen3", False, " \nNo thoughts. ", [("text", " \nNo thoughts. ")]),
    ("qwen3", False, "The <think> tag and </think>", [("text", "The <think> tag and </think>")]),
    ("qwen3", False, "<thin", [("text", "<thin")]),
    ("qwen3", False, "<think>a<think>b</think>c</think>", [("reasoning", "a<think>b"), ("text", "c</think>")]),
    ("qwen3", False, "", []),
    ("deepseek_r1", True, "Hm.\n</think>\n\nYes", [HM, YES]),
    ("deepseek_r1", True, "<think>\nHm.\n</think>\n\nYes", [HM, YES]),
    ("deepseek_v3", False, "Yes </think>", [("text", "Yes </think>")]),
    ("glm45", False, "\n<think>Hm.</think>\nYes", [HM, YES]),
    ("glm45", False, "\n<think></think>\n", []),
    ("kimi_k2", False, "<think>Hm.</think>Yes", [HM, YES]),
    ("mistral", False, "[THINK]Hm [x].[/THINK]Yes [/THINK]", [("reasoning", "Hm [x]."), ("text", "Yes [/THINK]")]),
    ("mistral", False, "[THIN] [THINK]", [("text", "[THIN] [THINK]")]),
    (
        "granite",
        False,
        "Here is my thought process:\n\nHm. Here is\n\nHere is my response:\n\nYes",
        [("reasoning", "Hm. Here is"), YES],
    ),
    ("granite", False, "Here's my thought process: Hm. Here's my response: Yes", [HM, YES]),
    ("granite", False, "<think>Hm.</think>\n<response>Yes <b>\n</response>", [HM, ("text", "Yes <b>")]),
    ("granite", False, "<think>Hm.</think><response>Yes", [HM, YES]),
    ("granite", False, "<think>Hm.</think>Yes <response>", [HM, ("text", "Yes <response>")]),
    ("granite", False, "Here is my answer: 3 </think>", [("text", "Here is my answer: 3 </think>")]),
    (
        "openai_gptoss",
        False,
        "<|channel|>analysis<|message|>Hm.\n\nOk.<|end|><|start|>assistant<|channel|>final<|message|>Yes.\n",
        [("reasoning", "Hm.\n\nOk."), ("text", "Yes.\n")],
    ),
    ("openai_gptoss", True, "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes", [HM, YES]),
    ("openai_gptoss", False, "<|channel|>analysis<|message|>cut <|e", [("reasoning", "cut <|e")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inside", "text", "expected"), CASES)
def test_thoughts_are_apart_however_the_text_is_cut(name: str, inside: bool, text: str, expected: list[Plain]) -> None:
    assert Setup(None, name, inside=inside).check(text) == expected


def test_every_format_has_cases() -> None:
    classes = {REASONING_PARSERS.find(name) for name, _, _, _ in CASES}
    assert classes == {REASONING_PARSERS.find(name) for name in REASONING_PARSERS.names}


CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
NOW = ("call", "now", "{}")
TOGETHER: list[tuple[str, str, str, list[Plain]]] = [
    ("hermes", "qwen3", f"<tool_call>?</think>\n\nOk.\n{CALL}", [("reasoning", "<tool_call>?"), ("text", "Ok."), NOW]),
    ("hermes", "qwen3", f"Hm.\n</think>\n\n{CALL}", [HM, NOW]),
    ("hermes", "qwen3", f"Hm.\n\n{CALL}\n", [HM, NOW]),
    (
        "qwen3_coder",
        "qwen3",
        "Hm.\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        [HM, NOW],
    ),
    ("kimi_k2", "kimi_k2", "Hm." + KIMI, [HM, NOW]),
    ("mistral", "mistral", "Hm.[/THINK]I look.[TOOL_CALLS]now[ARGS]{}", [HM, ("text", "I look."), NOW]),
    ("mistral", "mistral", "Hm.[TOOL_CALLS]now[ARGS]{}", [HM, NOW]),
    ("glm45", "glm45", "Hm.</think>\n<tool_call>now\n</tool_call>", [HM, NOW]),
    (
        "deepseek_v3",
        "deepseek_r1",
        "Hm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [HM, NOW],
    ),
    (
        "openai",
        "openai_gptoss",
        "Hm.<|end|><|start|>assistant to=functions.now<|channel|>commentary<|message|>{}",
        [HM, NOW],
    ),
    ("pythonic", "qwen3", "[now()]</think>[now()]", [("reasoning", "[now()]"), NOW]),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "reasoning", "text", "expected"), TOGETHER)
def test_calls_are_found_in_what_follows_the_thoughts(
    tool: str, reasoning: str, text: str, expected: list[Plain]
) -> None:
    setup = Setup(tool, reasoning, inside=True)
    assert setup.check(text) == expected
    chance = random.Random(text)
    for seed in range(20):
        setup.check(mutated(text, chance), num_random=2, seed=seed, every_cut=False)


def test_without_tools_a_call_does_not_end_the_thoughts() -> None:
    assert Setup("hermes", "qwen3", tools=[], inside=True).run(["Hm.\n" + CALL]) == [("reasoning", "Hm.\n" + CALL)]


def test_thoughts_and_answer_stream() -> None:
    parser = make_output_parser("hermes", "qwen3", None, [{"name": "now"}], False)
    pieces = ["<think>", "\n", "Hm", ".", "\n", "</think>", "\n\n", "Yes", " <"]
    assert [parser.push(piece, ()) for piece in pieces] == [
        [], [], [Reasoning("Hm")], [Reasoning(".")], [], [], [], [Text("Yes")], [],
    ]  # fmt: skip
    assert parser.finish() == [Text(" <")]


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        (None, "<think>\n", False),
        ("qwen3", "<|im_start|>assistant\n<think>\n", True),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("qwen3", "what is <think>?<|im_end|>\n<|im_start|>assistant\n", False),
        ("glm45", "<|assistant|><think>", True),
        ("glm45", "<|assistant|>\n<think></think>", False),
        ("deepseek_r1", "<｜User｜>hi<｜Assistant｜><think>\n", True),
        ("deepseek_r1", "<｜User｜>hi<｜Assistant｜>", True),
        ("deepseek_r1", "<｜Assistant｜></think>", False),
        ("deepseek_r1", "<｜tool▁outputs▁begin｜>3<｜tool▁outputs▁end｜>", False),
        ("deepseek_v3", "<｜Assistant｜><think>", True),
        ("deepseek_v3", "<｜Assistant｜></think>", False),
        ("mistral", "[/INST][THINK]", True),
        ("mistral", "[/INST]", False),
        ("openai_gptoss", "<|start|>assistant", False),
        ("openai_gptoss", "<|start|>assistant<|channel|>analysis<|message|>", True),
        ("granite", "<|start_of_role|>assistant<|end_of_role|>", False),
        ("kimi_k2", "<|im_assistant|>assistant<|im_middle|>", False),
    ],
)
def test_the_prompt_tells_whether_thoughts_are_open(name: str | None, prompt: str, expected: bool) -> None:
    assert prompt_ends_in_reasoning(name, prompt) is expected


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"--reasoning-parser 'qwen4' is unknown; the nearest known are qwen3"):
        prompt_ends_in_reasoning("qwen4", "")
