"""Structural tags: free text with parts whose form is set, as tool calls are. The two ways in which they are written.

{"type": "structural_tag", "structures": [{"begin", "schema", "end"}], "triggers": [...]}
{"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": [...],
    "tags": [{"begin", "content": {"type": "json_schema", "json_schema"}, "end"}]}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.structured.grammar import Unsupported


@dataclass(frozen=True)
class Tag:
    begin: str
    schema: Any
    end: str


@dataclass(frozen=True)
class Tags:
    """Each tag's `begin` starts with one of the `triggers`."""

    triggers: list[str]
    tags: list[Tag]


def triggered_tags(value: Mapping[str, Any]) -> Tags:
    """Raises ValueError for what is malformed, Unsupported for formats of other kinds."""
    if "structures" in value:
        tags = [
            Tag(_text(entry, "begin"), _schema(entry, "schema"), _text(entry, "end", empty=True))
            for entry in _entries(value, "structures")
        ]
        return _checked(Tags(_texts(value, "triggers"), tags))
    form = value.get("format")
    if not isinstance(form, Mapping):
        raise ValueError("it must have `structures` and `triggers`, or a `format`")
    if form.get("type") != "triggered_tags":
        raise Unsupported(f"a structural tag's format {form.get('type')!r}")
    for flag in ("at_least_one", "stop_after_first"):
        if form.get(flag):
            raise Unsupported(f"a structural tag's {flag!r}")
    tags = []
    for entry in _entries(form, "tags"):
        content = entry.get("content")
        if not isinstance(content, Mapping) or content.get("type") != "json_schema":
            kind = content.get("type") if isinstance(content, Mapping) else content
            raise Unsupported(f"a structural tag's content {kind!r}")
        tags.append(Tag(_text(entry, "begin"), _schema(content, "json_schema"), _text(entry, "end", empty=True)))
    return _checked(Tags(_texts(form, "triggers"), tags))


def _checked(tags: Tags) -> Tags:
    for tag in tags.tags:
        if not any(tag.begin.startswith(trigger) for trigger in tags.triggers):
            raise ValueError(f"the tag {tag.begin!r} begins with none of the triggers")
    return tags


def _entries(value: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    entries = value.get(name)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"`{name}` must be a list of objects that is not empty")
    return entries


def _texts(value: Mapping[str, Any], name: str) -> list[str]:
    texts = value.get(name)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"`{name}` must be a list of strings that is not empty")
    return texts


def _text(value: Mapping[str, Any], name: str, empty: bool = False) -> str:
    text = value.get(name, "" if empty else None)
    if not isinstance(text, str) or not (text or empty):
        raise ValueError(f"`{name}` must be a string")
    return text


def _schema(value: Mapping[str, Any], name: str) -> Any:
    schema = value.get(name, True)
    if not isinstance(schema, dict | bool):
        raise ValueError(f"`{name}` must be a JSON schema")
    return schema
