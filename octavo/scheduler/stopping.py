"""When a request is finished, and why."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.params import RepetitionDetection
from octavo.core.request import Request, RequestStatus

REPEATED = "repetition_detected"  # the stop reason


def set_finished(request: Request) -> None:
    """Says why, of a request whose newest token is its last: end of sequence, a stop token, a repetition, or length, in
    this order. `min_tokens` needs no look: until it is reached, the sampler gives ids that would stop no probability.
    """
    token_id = request.token_ids[-1]
    if token_id in request.eos_token_ids:
        request.status = RequestStatus.FINISHED_STOPPED
    elif token_id in request.stop_token_ids:
        request.status = RequestStatus.FINISHED_STOPPED
        request.stop_reason = token_id
    elif request.detection is not None and repeats_itself(request):
        request.status = RequestStatus.FINISHED_REPETITION
        request.stop_reason = REPEATED
    else:
        assert request.num_tokens >= request.max_total_tokens
        request.status = RequestStatus.FINISHED_LENGTH


def repeats_itself(request: Request) -> bool:
    """Does its output end as its `repetition_detection` describes? Never before min_tokens."""
    detection, length = request.detection, request.num_output_tokens
    if detection is None or length < request.params.min_tokens:
        return False
    return ends_in_repetition(request.token_ids, length, detection)


def ends_in_repetition(token_ids: Sequence[int], length: int, detection: RepetitionDetection) -> bool:
    """Are the last of the last `length` tokens one pattern, `min_count` times over?"""
    count = detection.min_count
    for size in range(max(1, detection.min_pattern_size), min(detection.max_pattern_size, length // count) + 1):
        if (
            token_ids[-1] == token_ids[-1 - size]
            and token_ids[-(count - 1) * size :] == token_ids[-count * size : -size]
        ):
            return True
    return False
