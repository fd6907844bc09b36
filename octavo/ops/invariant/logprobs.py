"""Log-probabilities row by row: neither the sum over the vocabulary nor the order of equal logits depends on others."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_logprobs(logits_SV: Tensor, token_ids_S: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Equal logits come by id, so the first of a longer list are the shorter list. Waits for the device."""
    num_rows, vocab_size = logits_SV.shape
    num_top = min(num_top, vocab_size)
    device = logits_SV.device
    ids = torch.empty(num_rows, 1 + num_top, dtype=torch.int64, device=device)
    logprobs = torch.empty(num_rows, 1 + num_top, dtype=torch.float32, device=device)
    ranks = torch.empty_like(ids)
    for row in range(num_rows):
        logits_V = logits_SV[row].float().contiguous()
        chosen = token_ids_S[row : row + 1]
        top_ids = _likeliest(logits_V, num_top)
        ids[row] = torch.cat([chosen, top_ids])
        values = logits_V[ids[row]]
        logprobs[row] = values - logits_V.logsumexp(-1)
        top_values = values[1:]
        places = torch.arange(num_top, device=device)
        starts = torch.ones_like(top_ids, dtype=torch.bool)  # where a run of equal logits starts
        starts[1:] = top_values[1:] != top_values[:-1]
        ranks[row, :1] = 1 + (logits_V > values[0]).sum()
        ranks[row, 1:] = 1 + (places * starts).cummax(-1).values if num_top else places
    return ids, logprobs, ranks


def log_mass(logits_SV: Tensor) -> Tensor:
    if not len(logits_SV):
        return logits_SV.new_empty(0, 1)
    return torch.stack([logits_V.contiguous().logsumexp(-1, keepdim=True) for logits_V in logits_SV.unbind()])


def _likeliest(logits_V: Tensor, count: int) -> Tensor:
    """Ids of the `count` largest logits: largest first, equal ones by id."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=logits_V.device)
    least = logits_V.topk(count).values[-1]
    candidates = (~(logits_V < least)).nonzero()[:, 0]  # NaN is a largest one, as topk has it
    return candidates[logits_V[candidates].sort(stable=True, descending=True).indices[:count]]
