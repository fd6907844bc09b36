"""Items of the responses API: a request's → chat messages, and the output's parsed events → items and stream events."""

from __future__ import annotations

import secrets
from typing import Any

from octavo.errors import InvalidRequest
from octavo.server.output_parser import Event, Reasoning, Text, ToolCallArguments, ToolCallStart
from octavo.server.protocol.responses import InputItem, InputPart

_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


# ---- what comes in


def chat_messages(content: str | list[InputItem]) -> list[dict[str, Any]]:
    """Raises InvalidRequest that names the item."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    messages: list[dict[str, Any]] = []
    reasoning: list[str] = []  # belongs to the answer that follows
    for i, item in enumerate(content):
        where = f"input[{i}]"
        match item.type:
            case None | "message":
                message = _message(item, where)
            case "reasoning":
                reasoning.append(_reasoning_text(item, where))
                continue
            case "function_call":
                call = _call(item, where)
                if messages and messages[-1]["role"] == "assistant" and not reasoning:
                    messages[-1].setdefault("tool_calls", []).append(call)
                    continue
                message = {"role": "assistant", "content": "", "tool_calls": [call]}
            case "function_call_output":
                output = "" if item.output is None else item.output
                text = output if isinstance(output, str) else _parts_text(output, f"{where}.output")
                message = {"role": "tool", "tool_call_id": _required(item, "call_id", where), "content": text}
            case _:
                raise InvalidRequest(f"{where} has the type {item.type!r}, which is not supported", where)
        if reasoning and message["role"] == "assistant":
            message["reasoning"] = message["reasoning_content"] = "".join(reasoning)
            reasoning = []
        messages.append(message)
    return messages


def _message(item: InputItem, where: str) -> dict[str, Any]:
    content = "" if item.content is None else item.content
    text = content if isinstance(content, str) else _parts_text(content, f"{where}.content")
    return {"role": _required(item, "role", where), "content": text}


def _call(item: InputItem, where: str) -> dict[str, Any]:
    function = {"name": _required(item, "name", where), "arguments": item.arguments or "{}"}
    return {"id": _required(item, "call_id", where), "type": "function", "function": function}


def _reasoning_text(item: InputItem, where: str) -> str:
    if isinstance(item.content, list) and item.content:
        return _parts_text(item.content, f"{where}.content")
    return "\n".join(str(part.get("text", "")) for part in item.summary or ())


def _parts_text(parts: list[InputPart], where: str) -> str:
    texts = []
    for i, part in enumerate(parts):
        if part.type == "refusal":
            texts.append(str((part.model_extra or {}).get("refusal", "")))
        elif part.type not in _TEXT_PARTS or part.text is None:
            raise InvalidRequest(
                f"{where}[{i}] must be a part of text, got {part.type!r}: multimodal input is not supported by this "
                "model",
                f"{where}[{i}]",
            )
        else:
            texts.append(part.text)
    return "\n".join(texts)


def _required(item: InputItem, field: str, where: str) -> str:
    value = getattr(item, field)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{where}.{field} is missing", f"{where}.{field}")
    return value


# ---- what goes out


class OutputItems:
    """The items of an output as they grow; what its methods return are a stream's events, but for their numbers."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._is_open = False

    def push(self, events: list[Event], logprobs: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        """`logprobs`: of the tokens behind these events; they go with the text."""
        made: list[dict[str, Any]] = []
        for event in events:
            match event:
                case Text(text):
                    made += self._begin("message")
                    made.append(self._text(text, logprobs or []))
                    logprobs = None
                case Reasoning(text):
                    made += self._begin("reasoning")
                    self.items[-1]["content"][0]["text"] += text
                    made.append(self._about("response.reasoning_text.delta", content_index=0, delta=text))
                case ToolCallStart(_, call_id, name):
                    made += self._begin("function_call", call_id=call_id, name=name)
                case ToolCallArguments(_, fragment):
                    self.items[-1]["arguments"] += fragment
                    made.append(self._about("response.function_call_arguments.delta", delta=fragment))
        return made

    def close(self, is_complete: bool = True) -> list[dict[str, Any]]:
        """Ends the last item; an output of nothing is an empty message."""
        made = [] if self.items else self._begin("message")
        return made + self._end("completed" if is_complete else "incomplete")

    def _begin(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        if self._is_open and kind != "function_call" and self.items[-1]["type"] == kind:
            return []
        made = self._end()
        item = _new_item(kind) | fields
        self.items.append(item)
        self._is_open = True
        shown = {**item, "content": []} if "content" in item else dict(item)
        made.append({"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": shown})
        if "content" in item:
            part = dict(item["content"][0])
            made.append(self._about("response.content_part.added", content_index=0, part=part))
        return made

    def _text(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        part = self.items[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        return self._about("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _end(self, status: str = "completed") -> list[dict[str, Any]]:
        if not self._is_open:
            return []
        self._is_open = False
        item = self.items[-1]
        item["status"] = status
        made = []
        if item["type"] == "function_call":
            fields = {"arguments": item["arguments"], "name": item["name"]}
            made.append(self._about("response.function_call_arguments.done", **fields))
        else:
            part = item["content"][0]
            if item["type"] == "message":
                fields = {"text": part["text"], "logprobs": part["logprobs"]}
                made.append(self._about("response.output_text.done", content_index=0, **fields))
            else:
                made.append(self._about("response.reasoning_text.done", content_index=0, text=part["text"]))
            made.append(self._about("response.content_part.done", content_index=0, part=part))
        return [*made, {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}]

    def _about(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **fields}


def _new_item(kind: str) -> dict[str, Any]:
    number = secrets.token_hex(12)
    match kind:
        case "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            return {
                "id": f"msg_{number}",
                "type": kind,
                "status": "in_progress",
                "role": "assistant",
                "content": [part],
            }
        case "reasoning":
            part = {"type": "reasoning_text", "text": ""}
            return {"id": f"rs_{number}", "type": kind, "status": "in_progress", "summary": [], "content": [part]}
    return {"id": f"fc_{number}", "type": kind, "status": "in_progress", "arguments": ""}
