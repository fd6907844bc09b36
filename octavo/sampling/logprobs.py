"""Log-probabilities on their way from the device to a step's result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo.core.outputs import TokenLogprobs

SMALL_TOP = 32  # requests for up to this many share one gather


@dataclass(slots=True)
class LogprobBlock:
    """Of K rows of a batch: the sampled token, then the likeliest, best first; rows use 1 + their `num_top` of them."""

    batch_idx: list[int]  # which rows of the batch
    num_top: list[int]  # how many each asked for
    token_ids: Tensor  # int64 [K, 1 + N]
    logprobs: Tensor  # float32 [K, 1 + N]
    ranks: Tensor  # int64 [K, 1 + N], from 1

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.token_ids, self.logprobs, self.ranks

    def rows(self, arrived: Sequence[Tensor] | None = None) -> Iterator[tuple[int, TokenLogprobs]]:
        """(row of the batch, its log-probabilities). `arrived` are its tensors on the host."""
        columns = [tensor.tolist() for tensor in arrived or self.tensors]
        for batch_idx, num_top, token_ids, logprobs, ranks in zip(self.batch_idx, self.num_top, *columns, strict=True):
            end = 1 + num_top
            yield batch_idx, TokenLogprobs(token_ids[:end], logprobs[:end], ranks[:end])


def group_by_size(wanted: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """(row of the batch, N) pairs in groups of like N, so that one request for the whole vocabulary does not make its
    neighbours' as wide."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for pair in wanted:
        groups.setdefault(0 if pair[1] <= SMALL_TOP else pair[1].bit_length(), []).append(pair)
    return list(groups.values())
