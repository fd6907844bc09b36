"""When a request is finished."""

from __future__ import annotations

from octavo.core.request import Request, RequestStatus


def check_stop(request: Request) -> bool:
    """Looks at the newest token; sets `status` and `stop_reason` if it was the last. `min_tokens` needs no look: until
    it is reached, the sampler gives ids that would stop no probability."""
    token_id = request.token_ids[-1]
    if token_id in request.eos_token_ids:
        request.status = RequestStatus.FINISHED_STOPPED
    elif token_id in request.stop_token_ids:
        request.status = RequestStatus.FINISHED_STOPPED
        request.stop_reason = token_id
    elif len(request.token_ids) >= request.max_total_tokens:
        request.status = RequestStatus.FINISHED_LENGTH
    else:
        return False
    return True
