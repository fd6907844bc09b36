"""Matrix products, by the library that torch was built with; packed weights are read back to float32 first."""

from __future__ import annotations

import torch
from torch.nn import functional

from octavo.ops.packed import BLOCK, BLOCK_LAYOUTS, GROUP, PANEL, BlockLayout, PackedWeight


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if x.device.type == "cpu" and x.dtype == torch.float32 and 8 <= x.shape[0] <= 64:
        # MKL is 15 to 35% faster at these sizes when the long side, the outputs, comes first
        out = torch.mm(weight, x.t()).t().contiguous()
        return out if bias is None else out.add_(bias)
    return functional.linear(x, weight, bias)


def linear_packed(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    out = functional.linear(x.float(), unpacked(weight), None if bias is None else bias.float())
    return out.to(x.dtype)


def gated_linear_packed(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    gate, up = linear_packed(x.float(), weight, bias).chunk(2, -1)
    if activation == "silu":
        gate = functional.silu(gate)
    else:
        gate = functional.gelu(gate, approximate={"gelu": "none", "gelu_tanh": "tanh"}[activation])
    return (gate * up).to(x.dtype)


def rows_packed(ids: torch.Tensor, weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    return unpacked(weight)[ids].to(dtype)


def unpacked(weight: PackedWeight) -> torch.Tensor:
    """float32 [out_features, in_features]: exactly what was packed."""
    rows = []
    for index, part in enumerate(weight.parts):
        data = weight.part_data(index).view(-(-part.out_features // PANEL), -1)  # [panels, bytes]
        if part.format in BLOCK_LAYOUTS:
            values = _blocks(data, BLOCK_LAYOUTS[part.format])
        elif part.format == "BF16":
            pairs = data.view(torch.bfloat16).float().view(len(data), -1, PANEL, 2)
            values = pairs.transpose(1, 2).flatten(2)
        else:
            numbers = data.view(torch.float32 if part.format == "F32" else torch.float16).float()
            values = numbers.view(len(data), -1, PANEL).transpose(1, 2)
        rows.append(values.flatten(0, 1)[: part.out_features, : weight.in_features])
    return torch.cat(rows)


def _blocks(data: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
    """Panels of quantised blocks -> float32 [panels, 16, inputs]."""
    panels = len(data)
    if layout.head_bytes:
        groups = data.view(panels, -1, layout.head_bytes + GROUP * layout.block_bytes)
        heads = _half(groups[..., : layout.head_bytes]).repeat_interleave(GROUP, 1)  # [panels, blocks, 16 or 32]
        blocks = groups[..., layout.head_bytes :].reshape(panels, -1, layout.block_bytes)
    else:
        heads = torch.empty(0)
        blocks = data.view(panels, -1, layout.block_bytes)
    stored, quants = blocks.split((layout.scale_bytes, layout.block_bytes - layout.scale_bytes), -1)
    if not layout.head_bytes:
        scales = _half(stored)
        scale, minimum = scales[..., :PANEL], scales[..., PANEL:]
    elif layout.has_minimum:
        scale = heads[..., :PANEL] * stored[..., :PANEL].float()
        minimum = -(heads[..., PANEL:] * stored[..., PANEL:].float())
    else:  # two scales for 16 inputs each
        both = stored.contiguous().view(torch.int8).float().unflatten(-1, (2, PANEL)) * heads.unsqueeze(2)
        scale, minimum = both.permute(0, 3, 1, 2), torch.empty(0)
    q = _steps(quants, layout.bits).permute(0, 3, 1, 2, 4).flatten(3)  # [panels, 16, blocks, 32]
    centred = q.float() - layout.offset
    if layout.head_bytes and not layout.has_minimum:
        values = centred.unflatten(-1, (2, BLOCK // 2)) * scale.unsqueeze(-1)
    else:
        values = centred * scale.transpose(1, 2).unsqueeze(-1)
        if layout.has_minimum:
            values = values + minimum.transpose(1, 2).unsqueeze(-1)
    return values.reshape(panels, PANEL, -1)


def _steps(quants: torch.Tensor, bits: int) -> torch.Tensor:
    """[panels, blocks, bytes] -> [panels, blocks, 8 steps, 16 outputs, 4 inputs] of q."""
    vectors = quants.unflatten(-1, (-1, PANEL, 4)).int()
    if bits == 8:
        return vectors
    low = vectors[:, :, :4]
    q = torch.cat((low & 15, low >> 4), 2)
    if bits == 5:
        q = q | torch.stack([(vectors[:, :, 4] >> step & 1) << 4 for step in range(8)], 2)
    if bits == 6:
        q = q | torch.stack([(vectors[:, :, 4 + step // 4] >> 2 * (step % 4) & 3) << 4 for step in range(8)], 2)
    return q


def _half(data: torch.Tensor) -> torch.Tensor:
    return data.contiguous().view(torch.float16).float()
