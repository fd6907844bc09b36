"""A prompt's log-probabilities as users receive them."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from octavo.core.outputs import Logprob, PositionLogprobs
from octavo.core.prompt_logprobs import PromptRows


def prompt_positions(rows: PromptRows, text_of: Callable[[int], str] | None) -> list[PositionLogprobs | None]:
    """One entry for each token of the prompt, its own first; None for the first token, which nothing comes before."""
    token_ids, logprobs, ranks = array("i", rows.token_ids), array("f", rows.logprobs), array("i", rows.ranks)
    texts = {token_id: text_of(token_id) for token_id in set(token_ids)} if text_of is not None else {}
    entries = [
        Logprob(logprob, rank, texts.get(token_id))
        for token_id, logprob, rank in zip(token_ids, logprobs, ranks, strict=True)
    ]
    starts = range(0, rows.count * rows.width, rows.width)
    positions: list[PositionLogprobs | None] = [None]
    for at in starts:
        positions.append(dict(zip(token_ids[at : at + rows.width], entries[at : at + rows.width], strict=True)))
    return positions


def chosen_logprobs(rows: PromptRows, num_chosen: int) -> list[list[float]]:
    """[scored positions][the request's own choice of ids]"""
    values = array("f", rows.chosen)
    return [values[at : at + num_chosen].tolist() for at in range(0, len(values), num_chosen)]
