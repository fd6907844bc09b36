"""Thoughts in a model's text: one file a format. `tagged.py` says what a format of your own must do."""

from __future__ import annotations

from octavo.server.parser_registry import ParserRegistry

_HERE = "octavo.server.reasoning_parsers"

REASONING_PARSERS = ParserRegistry(
    "reasoning parser",
    "--reasoning-parser",
    known={
        "deepseek_r1": f"{_HERE}.deepseek:DeepseekR1Reasoning",
        "deepseek_v3": f"{_HERE}.deepseek:DeepseekV3Reasoning",
        "glm45": f"{_HERE}.glm45:Glm45Reasoning",
        "granite": f"{_HERE}.granite:GraniteReasoning",
        "kimi_k2": f"{_HERE}.kimi_k2:KimiK2Reasoning",
        "mistral": f"{_HERE}.mistral:MistralReasoning",
        "openai_gptoss": "octavo.server.harmony:Harmony",
        "qwen3": f"{_HERE}.qwen3:Qwen3Reasoning",
    },
    aliases={
        "deepseek_v31": "deepseek_v3",
        "glm47": "glm45",
        "gpt-oss": "openai_gptoss",
        "harmony": "openai_gptoss",
        "openai": "openai_gptoss",
    },
)
