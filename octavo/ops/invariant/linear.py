"""Matrix products in tiles of a fixed number of rows: the library sees one shape, whatever the number of tokens."""

from __future__ import annotations

import torch

TILE = 32  # rows. Fewer would make prompts slower, more single requests
NARROW_INNER = 32  # products of 2-byte types read inputs in such pieces, and past the end of a row if it is none


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The last tile is filled up with zeros."""
    if x.dtype.itemsize < 4 and x.shape[1] % NARROW_INNER:
        # What is past the end is the next row; times zero, but a NaN stays one.
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    num_rows, num_outputs = x.shape[0], weight.shape[0]
    num_tiles = -(-num_rows // TILE)
    if num_rows % TILE or not x.is_contiguous():
        padded = x.new_zeros(num_tiles * TILE, x.shape[1])
        padded[:num_rows] = x
        x = padded
    out = torch.empty(num_tiles * TILE, num_outputs, dtype=x.dtype, device=x.device)
    columns = weight.t()
    for x_tile, out_tile in zip(x.split(TILE), out.split(TILE), strict=True):
        torch.mm(x_tile, columns, out=out_tile)
    out = out[:num_rows]
    return out if bias is None else out.add_(bias)
