"""A prompt's log-probabilities as users receive them."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from octavo.core.outputs import FlatLogprobs, Logprob, PositionLogprobs
from octavo.core.prompt_logprobs import PromptRows

TextOf = Callable[[int], str] | None


def prompt_positions(rows: PromptRows, text_of: TextOf) -> list[PositionLogprobs | None]:
    """One entry for each token of the prompt, its own first; None for the first token, which nothing comes before."""
    token_ids, logprobs, ranks, texts = _columns(rows, text_of)
    entries = list(map(Logprob, logprobs, ranks, texts))
    positions: list[PositionLogprobs | None] = [None]
    for at in range(0, len(entries), rows.width):
        positions.append(dict(zip(token_ids[at : at + rows.width], entries[at : at + rows.width], strict=True)))
    return positions


def flat_positions(rows: PromptRows, text_of: TextOf) -> FlatLogprobs:
    """The same in few lists. The first token's position is empty."""
    flat = FlatLogprobs()
    flat.token_ids, flat.logprobs, flat.ranks, flat.decoded_tokens = _columns(rows, text_of)  # type: ignore[assignment]
    flat.start_indices = [0, *range(0, rows.count * rows.width, rows.width)]
    flat.end_indices = [0, *range(rows.width, (rows.count + 1) * rows.width, rows.width)]
    return flat


def chosen_logprobs(rows: PromptRows, num_chosen: int) -> list[list[float]]:
    """[scored positions][the request's own choice of ids]"""
    values = array("f", rows.chosen)
    return [values[at : at + num_chosen].tolist() for at in range(0, len(values), num_chosen)]


def _columns(rows: PromptRows, text_of: TextOf) -> tuple[list[int], list[float], list[int], list[str | None]]:
    """Token ids, log-probabilities, ranks and texts, row after row."""
    token_ids = array("i", rows.token_ids).tolist()
    known: dict[int, str] = {} if text_of is None else {token_id: text_of(token_id) for token_id in set(token_ids)}
    texts = [known.get(token_id) for token_id in token_ids]
    return token_ids, array("f", rows.logprobs).tolist(), array("i", rows.ranks).tolist(), texts
