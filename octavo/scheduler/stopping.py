"""Why a request is finished."""

from __future__ import annotations

from octavo.core.request import Request, RequestStatus


def set_finished(request: Request) -> None:
    """Says why, of a request whose newest token is its last: end of sequence, a stop token, or length, in this order.
    `min_tokens` needs no look: until it is reached, the sampler gives ids that would stop no probability."""
    token_id = request.token_ids[-1]
    if token_id in request.eos_token_ids:
        request.status = RequestStatus.FINISHED_STOPPED
    elif token_id in request.stop_token_ids:
        request.status = RequestStatus.FINISHED_STOPPED
        request.stop_reason = token_id
    else:
        assert request.num_tokens >= request.max_total_tokens
        request.status = RequestStatus.FINISHED_LENGTH
