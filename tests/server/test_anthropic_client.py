"""Anthropic's own client, as it is."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

HELLO: Any = [{"role": "user", "content": "hello to the cat"}]
GREEDY = {"temperature": 0}


def test_messages(anthropic_client: Anthropic) -> None:
    settings: Any = {"model": "tiny", "max_tokens": 8, "messages": HELLO, "extra_body": GREEDY, "system": "be brief"}
    answer = anthropic_client.messages.create(**settings)
    assert answer.role == "assistant" and answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 8
    assert answer.content[0].type == "text" and answer.content[0].text
    with anthropic_client.messages.stream(**settings) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == answer.content[0].text
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 8
    assert [block.type for block in final.content] == ["text"]
    counted = anthropic_client.messages.count_tokens(model="tiny", messages=HELLO, system="be brief")
    read = answer.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == answer.usage.input_tokens + read


def test_stop_sequences(anthropic_client: Anthropic) -> None:
    settings: Any = {"model": "tiny", "max_tokens": 20, "messages": HELLO, "extra_body": GREEDY}
    whole = anthropic_client.messages.create(**settings).content[0]
    assert whole.type == "text"
    cut = whole.text[4:6]
    stopped = anthropic_client.messages.create(stop_sequences=[cut], **settings)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", cut)


def test_errors(anthropic_client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        anthropic_client.messages.create(model="other", max_tokens=5, messages=HELLO)
    for more in ({"max_tokens": 0}, {"max_tokens": 5, "tool_choice": {"type": "any"}, "tools": []}):
        with pytest.raises(anthropic.BadRequestError) as refused:
            anthropic_client.messages.create(model="tiny", messages=HELLO, **more)  # type: ignore[call-overload]
        assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
