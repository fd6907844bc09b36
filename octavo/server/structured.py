"""What a request says of the form of its answer → StructuredOutputsParams: response_format, structured_outputs, the
older guided_ fields, and tools that must be called."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import BaseModel

from octavo.config.engine_config import StructuredConfig
from octavo.core.json_schema import move_references
from octavo.core.structured import StructuredOutputsParams
from octavo.errors import InvalidParameter, InvalidRequest
from octavo.server.output_parser import thinking_of
from octavo.server.state import ServedModel
from octavo.server.tool_parsers import TOOL_PARSERS

# vLLM's older fields, and what they are called in structured_outputs.
_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
    "structural_tag": "structural_tag",
    "guided_whitespace_pattern": "whitespace_pattern",
    "guided_decoding_backend": "backend",
}
_FORMATS = "text, json_object, json_schema or structural_tag"


@dataclass(frozen=True)
class ForcedTools:
    """Tools of which one must be called: `name` alone, or any, perhaps several."""

    name: str | None = None
    parallel: bool = True


def form_of(
    body: BaseModel,
    *,
    format: Mapping[str, Any] | None = None,
    format_field: str = "response_format",
    tools: Sequence[Mapping[str, Any]] | None = None,
    forced: ForcedTools | None = None,
    tool_parser: str | None = None,
) -> StructuredOutputsParams | None:
    """The form of an answer, None where it is free. `format` is the body's response_format, or what its API has for it;
    `tools` are those that the model is told of. Raises InvalidRequest."""
    given, fields = getattr(body, "structured_outputs", None), body.model_extra or {}
    own = None if given is None else StructuredOutputsParams.from_dict(given)
    older = {name: fields[name] for name in _GUIDED if fields.get(name) not in (None, "", [], {}, False)}
    if older and set(older) <= {"guided_whitespace_pattern", "guided_decoding_backend"}:
        older = {}  # they speak of a form, and there is none
    if older and own is None:
        own = StructuredOutputsParams.from_dict({_GUIDED[name]: value for name, value in older.items()})
        own.source = next(name for name in older if _GUIDED[name] not in ("whitespace_pattern", "backend"))
    elif older:
        name = next(iter(older))
        raise InvalidRequest(f"{name} is the older form of structured_outputs: give one of them", name)
    formatted = None if format is None else format_form(format, format_field)
    if own is not None and formatted is not None:
        raise InvalidRequest(f"{format_field} and structured_outputs both say the answer's form: give one of them",
                             format_field)  # fmt: skip
    if forced is not None:
        if own is not None:
            raise InvalidRequest(
                "structured_outputs says the answer's form, but tool_choice has it be a call: give one of them",
                "structured_outputs",
            )
        return forced_form(tools or (), forced)
    form = own or formatted
    return form if form is not None or not tools else strict_form(tools, tool_parser)


def format_form(format: Mapping[str, Any], field: str) -> StructuredOutputsParams | None:
    """Of a response_format, or of what other APIs call it. Responses and Messages have the schema in it, chat has it in
    an object of its own."""
    kind = format.get("type")
    match kind:
        case "text":
            return None
        case "json_object":
            return StructuredOutputsParams(json_object=True, source=field)
        case "json_schema":
            inner = format.get("json_schema", format)
            if not isinstance(inner, Mapping):
                raise InvalidParameter(f"{field}.json_schema", inner, "an object with a schema")
            schema = inner.get("schema")
            if schema is None:
                where = f"{field}.json_schema.schema" if inner is not format else f"{field}.schema"
                raise InvalidRequest(f"{where} is missing", where)
            return StructuredOutputsParams(json=schema, source=field)
        case "structural_tag":
            return StructuredOutputsParams(structural_tag=dict(format), source=field)
    raise InvalidParameter(f"{field}.type", kind, _FORMATS)


def forced_form(tools: Sequence[Mapping[str, Any]], forced: ForcedTools) -> StructuredOutputsParams:
    """One tool's arguments, or a list of calls, each with a name and parameters."""
    functions = [tool["function"] for tool in tools]
    if forced.name is not None:
        function = next((function for function in functions if function["name"] == forced.name), None)
        if function is None:
            known = ", ".join(function["name"] for function in functions) or "none"
            raise InvalidRequest(f"tool_choice names the tool {forced.name!r}, but tools has {known}", "tool_choice")
        return StructuredOutputsParams(json=_parameters(function), source=_source(functions, function))
    if not functions:
        raise InvalidRequest("tool_choice has a tool called, but there are none in tools", "tool_choice")
    definitions = {}
    for i, function in enumerate(functions):
        definitions[f"tool_{i}"] = schema = _parameters(function)
        move_references(schema, f"#/$defs/tool_{i}")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "parameters": {"$ref": f"#/$defs/tool_{i}"}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for i, function in enumerate(functions)
    ]
    array = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "$defs": definitions}
    if not forced.parallel:
        array["maxItems"] = 1
    return StructuredOutputsParams(json=array, source="tools")


def strict_form(tools: Sequence[Mapping[str, Any]], tool_parser: str | None) -> StructuredOutputsParams | None:
    """Free text, but calls of tools that are strict have their tools' schemas. Raises InvalidRequest where the model's
    format of calls cannot be held to."""
    functions = [tool["function"] for tool in tools]
    strict = next((i for i, function in enumerate(functions) if function.get("strict")), None)
    if strict is None:
        return None
    frame = None if tool_parser is None else getattr(TOOL_PARSERS.find(tool_parser), "frame", None)
    if frame is None:
        raise InvalidRequest(
            f"tools[{strict}]: strict is not supported with this model's format of tool calls ({tool_parser}) yet, "
            "except with a tool_choice that has a tool called",
            f"tools[{strict}].function.strict",
        )
    structures, triggers = [], []
    for function in functions:
        trigger, begin, end = frame(function["name"])
        schema = _parameters(function) if function.get("strict") else {"type": "object"}
        structures.append({"begin": begin, "schema": schema, "end": end})
        triggers.append(trigger)
    tag = {"type": "structural_tag", "structures": structures, "triggers": list(dict.fromkeys(triggers))}
    return StructuredOutputsParams(structural_tag=tag, source="tools")


def after_thinking(
    form: StructuredOutputsParams | None, served: ServedModel, ends_in_reasoning: bool
) -> StructuredOutputsParams | None:
    """A form that begins once the model's thoughts have ended, unless the engine has it hold for them too."""
    if form is None:
        return None
    configured = served.engine.frontend.configured
    config = StructuredConfig() if configured is None else configured.config.structured
    if config.enable_in_reasoning:
        return form
    return msgspec.structs.replace(form, thinking=thinking_of(served.reasoning_parser, ends_in_reasoning))


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(function.get("parameters")) or {"type": "object"}


def _source(functions: Sequence[Any], function: Any) -> str:
    return f"tools[{functions.index(function)}].function.parameters"
