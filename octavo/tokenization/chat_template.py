"""Chat messages to prompt text, through the model's own jinja2 template in a sandbox.

Templates are written for Hugging Face's environment: trimmed blocks, `tojson` without HTML escapes,
`raise_exception`, `strftime_now`, loop controls, and a `generation` block that only training needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.config.checkpoint import Checkpoint, read_json
from octavo.config.gguf_header import read_header
from octavo.errors import CheckpointError, InvalidRequest
from octavo.tokenization.tokenizer import Tokenizer

# Marks where the last message ends. The space tells whether the template strips what it is given.
_END_MARK = "\ue000END\ue000 "
_MAX_BLAMED = 64  # messages that are rendered again, one more each time, to find the one that is refused

_DEFAULT, _WITH_TOOLS = "default", "tool_use"


# --- where templates come from -----------------------------------------------------------------------------------


def find_chat_template(checkpoint: Checkpoint, *, with_tools: bool = False) -> str | None:
    """The model's template, or None. `with_tools` prefers one that was written for tool calls."""
    found = find_chat_templates(checkpoint)
    if with_tools and _WITH_TOOLS in found:
        return found[_WITH_TOOLS]
    return found.get(_DEFAULT)


def find_chat_templates(checkpoint: Checkpoint) -> dict[str, str]:
    """The model's templates by name; the usual one is "default"."""
    if checkpoint.path is None:
        return {}
    if checkpoint.is_gguf_file:
        prefix = "tokenizer.chat_template"
        metadata = read_header(checkpoint.path).metadata
        stored = {key[len(prefix) + 1 :] or _DEFAULT: text for key, text in metadata.items() if key.startswith(prefix)}
        return {name: text for name, text in stored.items() if isinstance(text, str)}
    found = _templates_in(read_json(checkpoint.path / "tokenizer_config.json"))
    found |= _templates_in(read_json(checkpoint.path / "chat_template.json"))
    file = checkpoint.path / "chat_template.jinja"
    if file.is_file():
        try:
            found[_DEFAULT] = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    return found


def _templates_in(settings: Mapping[str, Any] | None) -> dict[str, str]:
    stored = (settings or {}).get("chat_template")
    if isinstance(stored, str):
        return {_DEFAULT: stored}
    if not isinstance(stored, list):
        return {}
    named = [entry for entry in stored if isinstance(entry, dict)]
    return {entry["name"]: entry["template"] for entry in named if isinstance(entry.get("template"), str)}


# --- rendering ---------------------------------------------------------------------------------------------------


def render_chat(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    **kwargs: Any,
) -> str:
    """The prompt for `messages`; encode it with add_special_tokens=False, since templates write BOS themselves.

    `continue_final_message` leaves the last message open instead of starting an answer. `kwargs` are further
    variables of the template. Raises InvalidRequest, naming messages[i] where one is to blame.
    """
    if template is None:
        raise InvalidRequest(
            "this model has no chat template, so it takes prompts, not messages; or give a template as chat_template",
            "chat_template",
        )
    compiled = _compile(template)
    prepared = _checked(messages, takes_parts=compiled.takes_parts)
    if tools is not None:
        _check_tools(tools)
    if continue_final_message and add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other: the last message is either "
            "continued or answered",
            "continue_final_message",
        )
    ending = _mark_end(prepared) if continue_final_message else None
    variables = {**tokenizer.special_tokens, "documents": None, **kwargs, "tools": tools}
    variables["add_generation_prompt"] = add_generation_prompt
    try:
        text = compiled.template.render(messages=prepared, **variables)
    except Exception as error:  # a template is a program; whatever it raises, this request is refused
        _refuse(compiled, prepared, variables, error)
    return text if ending is None else _cut_at_mark(text, ending)


def _refuse(
    compiled: _Compiled, messages: list[dict[str, Any]], variables: Mapping[str, Any], error: Exception
) -> NoReturn:
    """Blame the first message with which the template fails in the same way."""
    field = "messages"
    for count in range(1, min(len(messages), _MAX_BLAMED) + 1):
        try:
            compiled.template.render(messages=messages[:count], **variables)
        except Exception as earlier:
            if str(earlier) == str(error):
                field = f"messages[{count - 1}]"
                break
    reason = str(error) or type(error).__name__
    raise InvalidRequest(f"{field}: the model's chat template refuses it: {reason}", field) from error


# --- checks ------------------------------------------------------------------------------------------------------


def _checked(messages: Any, *, takes_parts: bool) -> list[dict[str, Any]]:
    """Copies of the messages in the form templates expect."""
    if not isinstance(messages, list | tuple):
        raise InvalidRequest(f"messages must be a list of messages, got {type(messages).__name__}", "messages")
    if not messages:
        raise InvalidRequest("messages must have at least one message, got none", "messages")
    return [_checked_message(message, f"messages[{i}]", takes_parts) for i, message in enumerate(messages)]


def _checked_message(message: Any, field: str, takes_parts: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{field} must be a dict with role and content, got {type(message).__name__}", field)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"{field}.role must be a string such as 'user', got {role!r}", f"{field}.role")
    copy = dict(message)
    calls = copy.get("tool_calls")
    if calls:
        copy["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    content = copy.get("content")
    if content is None:
        if not calls:
            raise InvalidRequest(f"{field}.content is missing", f"{field}.content")
    elif isinstance(content, list | tuple):
        _check_parts(content, field)
        if not takes_parts:
            copy["content"] = "\n".join(part["text"] for part in content)
    elif not isinstance(content, str):
        raise InvalidRequest(
            f"{field}.content must be a string or a list of parts, got {type(content).__name__}", f"{field}.content"
        )
    return copy


def _check_parts(parts: Sequence[Any], field: str) -> None:
    for i, part in enumerate(parts):
        where = f"{field}.content[{i}]"
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidRequest(f"{where} must be a part of type 'text', got {kind!r}", where)
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{where}.text must be a string, got {part.get('text')!r}", f"{where}.text")


def _with_parsed_arguments(call: Any) -> Any:
    """OpenAI's protocol has the arguments of a call as JSON text, templates want the object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _check_tools(tools: Any) -> None:
    if not isinstance(tools, list | tuple):
        raise InvalidRequest(f"tools must be a list of dicts, got {type(tools).__name__}", "tools")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise InvalidRequest(f"tools[{i}] must be a dict, got {type(tool).__name__}", f"tools[{i}]")


# --- continuing the last message ---------------------------------------------------------------------------------


def _mark_end(messages: list[dict[str, Any]]) -> str:
    """Put the mark behind the last message's text; that text."""
    last, field = messages[-1], f"messages[{len(messages) - 1}].content"
    content = last.get("content")
    if isinstance(content, list | tuple) and content:
        text = str(content[-1]["text"])
        last["content"] = [*content[:-1], {**content[-1], "text": text + _END_MARK}]
        return text
    if not isinstance(content, str):
        raise InvalidRequest(f"continue_final_message needs text to continue in {field}", field)
    last["content"] = content + _END_MARK
    return content


def _cut_at_mark(text: str, ending: str) -> str:
    at = text.rfind(_END_MARK.strip())
    if at < 0 or ending.strip() not in text:
        raise InvalidRequest(
            "continue_final_message cannot be served: the chat template does not show the last message as it is",
            "continue_final_message",
        )
    is_verbatim = text.startswith(_END_MARK, at)
    return text[:at] if is_verbatim else text[:at].rstrip()


# --- the environment ---------------------------------------------------------------------------------------------


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks what a model wrote, for training; here it is only its body."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


class _Compiled:
    """A template, and whether it goes through the parts of a message's content or takes a string."""

    def __init__(self, source: str) -> None:
        environment = _environment()
        self.takes_parts = any(_is_content(loop.iter) for loop in environment.parse(source).find_all(jinja2.nodes.For))
        self.template = environment.from_string(source)


def _is_content(node: jinja2.nodes.Node) -> bool:
    """Whether an expression is `content`, `message.content`, `message["content"]`, or a filter of one."""
    while isinstance(node, jinja2.nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, jinja2.nodes.Name):
        return node.name == "content"
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == "content"
    return (
        isinstance(node, jinja2.nodes.Getitem)
        and isinstance(node.arg, jinja2.nodes.Const)
        and node.arg.value == "content"
    )


@lru_cache(maxsize=32)
def _compile(template: str) -> _Compiled:
    try:
        return _Compiled(template)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidRequest(
            f"chat_template has a syntax error in line {error.lineno}: {error.message}", "chat_template"
        ) from error
