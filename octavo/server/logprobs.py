"""Log-probabilities in the two forms that OpenAI's APIs have for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from octavo.core.outputs import Logprob, PositionLogprobs, RequestOutput
from octavo.engine.detokenizer import TokenText
from octavo.errors import InvalidRequest
from octavo.server.protocol.fields import PromptLogprobFields

_LOWEST = -9999.0  # JSON has no infinity


class TokenNames:
    """How tokens are written: their text, or "token_id:N"."""

    def __init__(self, token_text: TokenText | None, as_ids: bool) -> None:
        self._text, self._as_ids = token_text, as_ids or token_text is None

    def name(self, token_id: int, entry: Logprob | None) -> str:
        if self._as_ids or self._text is None:
            return f"token_id:{token_id}"
        return (self._text.text_of(token_id) if entry is None else entry.decoded_token) or ""

    def bytes_of(self, token_id: int, entry: Logprob) -> list[int] | None:
        """A token may be part of a character, which only its bytes can tell."""
        if self._text is None:
            return None
        if self._text.is_bytewise:
            return list(self._text.piece(token_id, False))
        return list((entry.decoded_token or "").encode("utf-8", "replace"))


def chat_logprobs(
    positions: Sequence[PositionLogprobs],
    token_ids: Sequence[int],
    num_top: int,
    names: TokenNames,
    named: Collection[int] | None = None,
) -> list[dict[str, Any]]:
    """One entry for each token: its own, the `num_top` most likely, and those of the ids in `named`."""
    return [
        {
            **_entry(token_id, position[token_id], names),
            "top_logprobs": [_entry(other, entry, names) for other, entry in shown(position, num_top, named)],
        }
        for position, token_id in zip(positions, token_ids, strict=True)
    ]


def completion_logprobs(
    positions: Iterable[PositionLogprobs | None],
    token_ids: Iterable[int],
    num_top: int,
    names: TokenNames,
    offset: int,
    named: Collection[int] | None = None,
) -> tuple[dict[str, Any], int]:
    """The lists of the older API, and where the next token's text begins. The chosen token and the ids in `named` are
    always among the top. A prompt's first token, of which nothing is known, has nulls."""
    offsets: list[int] = []
    tokens: list[str] = []
    chosen: list[float | None] = []
    top: list[dict[str, float] | None] = []
    for position, token_id in zip(positions, token_ids, strict=True):
        entry = position[token_id] if position else None
        token = names.name(token_id, entry)
        offsets.append(offset)
        offset += len(token)
        tokens.append(token)
        if position is None or entry is None:
            chosen.append(None)
            top.append(None)
            continue
        chosen.append(_finite(entry.logprob))
        found = {names.name(other, one): _finite(one.logprob) for other, one in shown(position, num_top, named)}
        found.setdefault(token, _finite(entry.logprob))
        top.append(found)
    return {"text_offset": offsets, "token_logprobs": chosen, "tokens": tokens, "top_logprobs": top}, offset


def prompt_logprobs(output: RequestOutput, is_wanted: bool) -> dict[str, Any]:
    """What an answer says of its prompt: vLLM's field, and ours for a request's own choice of ids."""
    fields: dict[str, Any] = {}
    if is_wanted and output.prompt_logprobs is not None:
        fields["prompt_logprobs"] = [
            None if not position else {str(token_id): _prompt_entry(entry) for token_id, entry in position.items()}
            for position in output.prompt_logprobs
        ]
    if output.prompt_token_id_logprobs is not None:
        fields["prompt_token_id_logprobs"] = [list(map(_finite, row)) for row in output.prompt_token_id_logprobs]
    return fields


def _prompt_entry(entry: Logprob) -> dict[str, Any]:
    return {"logprob": _finite(entry.logprob), "rank": entry.rank, "decoded_token": entry.decoded_token}


def refuse_prompt_logprobs_in_stream(body: PromptLogprobFields, stream: bool | None) -> None:
    """Raises InvalidRequest."""
    for name in ("prompt_logprobs", "prompt_logprob_token_ids"):
        if stream and getattr(body, name) is not None:
            raise InvalidRequest(f"{name} cannot be had with stream: ask without, or for echo with logprobs", name)


def shown(position: PositionLogprobs, num_top: int, named: Collection[int] | None) -> list[tuple[int, Logprob]]:
    """The best `num_top` (-1: all), best first, and behind them those of the ids in `named` that are not among them."""
    entries = sorted(position.items(), key=lambda item: item[1].rank or 0)
    if num_top == -1:
        return entries
    top = [item for item in entries if (item[1].rank or 0) <= num_top][:num_top]
    if not named:
        return top
    return top + [item for item in entries if item[0] in named and item not in top]


def _entry(token_id: int, entry: Logprob, names: TokenNames) -> dict[str, Any]:
    return {
        "token": names.name(token_id, entry),
        "logprob": _finite(entry.logprob),
        "bytes": names.bytes_of(token_id, entry),
    }


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
