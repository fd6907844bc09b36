"""Tool calls in a model's text: one file a format. `protocol.py` says what a format of your own must do."""

from __future__ import annotations

from octavo.server.parser_registry import ParserRegistry

_HERE = "octavo.server.tool_parsers"

TOOL_PARSERS = ParserRegistry(
    "tool parser",
    "--tool-call-parser",
    known={
        "deepseek_v3": f"{_HERE}.deepseek_v3:DeepseekV3Calls",
        "glm45": f"{_HERE}.glm45:Glm45Calls",
        "granite": f"{_HERE}.granite:GraniteCalls",
        "hermes": f"{_HERE}.hermes:HermesCalls",
        "kimi_k2": f"{_HERE}.kimi_k2:KimiK2Calls",
        "llama3_json": f"{_HERE}.llama3_json:Llama3JsonCalls",
        "mistral": f"{_HERE}.mistral:MistralCalls",
        "openai": "octavo.server.harmony:Harmony",
        "pythonic": f"{_HERE}.pythonic:PythonicCalls",
        "qwen3_coder": f"{_HERE}.qwen3_coder:Qwen3CoderCalls",
    },
    aliases={
        "deepseek_v31": "deepseek_v3",
        "glm47": "glm45",
        "gpt-oss": "openai",
        "granite4": "hermes",
        "harmony": "openai",
        "llama4_json": "llama3_json",
        "llama4_pythonic": "pythonic",
        "openai_gptoss": "openai",
        "qwen": "hermes",
        "qwen2.5": "hermes",
        "qwen3": "hermes",
        "qwen3_xml": "qwen3_coder",
    },
)
