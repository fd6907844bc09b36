"""FlashAttention-4 for rows of many query tokens, octavo's Triton kernel for rows of few, into one output.

FlashAttention-4 has no split of the keys on Hopper, so rows that decode would leave most of the GPU idle. It is given
the rows from the first to the last long one, moved together on the device; rows of few tokens among them are computed
twice, to the same result. Steps put rows of one token first, so these are outside:

    rows           1 token, 1 token, 1 token, 70 tokens, 3 tokens, 50 tokens, padding
    given                                     3:73       73:76     76:126     126:126 ...   (cumulative lengths)

Rows of many keys are first copied into wide pages (ops/triton/attention_wide.py), which it reads faster, where the
time that this saves is more than the copy's: on Hopper, where few heads of keys serve several of queries, and where a
row has some hundred new tokens or more. Its own order of heads is better than packed ones there.

For more than MOST_ROWS rows it has other kernels, each compiled for seconds. In such steps rows are short, and octavo's
kernel for rows of many tokens takes them.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from octavo.attention import flash_import
from octavo.attention.backend import AttentionCall, AttentionQuery, StepContext
from octavo.attention.flash_compile import FlashCompilers
from octavo.attention.triton_paged import PagedPlan, TritonPaged
from octavo.ops import ahead
from octavo.ops.triton.attention_rows import LongRows, gather_long_rows
from octavo.ops.triton.attention_wide import WIDE, WidePages, copy_pages, list_pages, room_for_pages

if reason := flash_import.why_absent():
    raise ImportError(reason)

DTYPES = ("bfloat16", "float16")
CAPABILITIES = (9, 10)  # the major number
MAX_HEAD_DIM = 256
MOST_ROWS = 256
WIDE_TOKENS = 131_072  # that wide pages have room for
WIDE_LINE = 1024  # most values of a token's keys (of all heads), so that these pages take 512 MiB at most
WIDE_HEAD_DIM = 128  # larger heads have narrower tiles
LEAST_WIDE_TOKENS = 2048
LEAST_QUERIES = 896  # that on average read each key


@dataclass(slots=True)
class FlashPlan(PagedPlan):
    long_rows: LongRows | None = None
    is_wide: bool = False
    pages: dict[tuple[int, int], WidePages] = field(default_factory=dict)  # by heads of keys and their size


class FlashTriton(TritonPaged):
    name = "flash_triton"

    def __init__(self) -> None:
        super().__init__()
        self._flash = flash_import.FlashImport()
        self._compilers = FlashCompilers()
        self._compiled: set[Hashable] = set()  # kinds of calls
        self._compiling = threading.Lock()  # its compiler works for one thread at a time

    def prepare(self) -> None:
        self._flash.start()
        if ahead.is_rehearsing():
            self._compilers.start()

    def why_not(self, query: AttentionQuery) -> str | None:
        if query.dtype not in DTYPES:
            return f"dtype {query.dtype} is not one of {', '.join(DTYPES)}"
        if query.cache_dtype != query.dtype:
            return f"cache dtype {query.cache_dtype} is not the model's {query.dtype}"
        if query.capability is None or query.capability[0] not in CAPABILITIES:
            shown = "unknown" if query.capability is None else ".".join(map(str, query.capability))
            return f"compute capability {shown} is not 9.x or 10.x"
        if query.head_dim > MAX_HEAD_DIM or query.head_dim % 8:
            return f"head_dim {query.head_dim} is not a multiple of 8 up to {MAX_HEAD_DIM}"
        if query.capability[0] == 10 and 128 < query.head_dim < 256:
            return f"head_dim {query.head_dim} is over 128 and not 256"
        if query.sinks:
            return "no attention sinks"
        return super().why_not(query)

    def graph_key(self, step: StepContext) -> Hashable:
        return super().graph_key(step), self.is_wide(step)

    def plan(self, step: StepContext, group: int) -> FlashPlan:
        plan = super().plan(step, group)
        long_rows = None
        if 0 < plan.bounds.prefill_rows <= MOST_ROWS:
            long_rows = gather_long_rows(
                step.query_start, step.seq_lens, step.groups[group].block_table, plan.bounds, self.workspace, group
            )
        return FlashPlan(plan.bounds, plan.groups, plan.work, long_rows, self.is_wide(step))

    def is_wide(self, step: StepContext) -> bool:
        """Whether wide pages are worth while, and large enough."""
        if not 0 < self.bounds(step).prefill_rows <= MOST_ROWS:
            return False
        long = [row for row, tokens in enumerate(step.query_lens) if tokens > self.decode_tokens]
        pairs = room = 0
        for row in range(long[0], long[-1] + 1) if long else ():
            tokens, length = step.query_lens[row], step.max_seq_lens[row]
            pairs += tokens * (length - tokens // 2)
            room += -(-length // WIDE) * WIDE
        return LEAST_WIDE_TOKENS <= room <= WIDE_TOKENS and pairs >= LEAST_QUERIES * room

    def forward(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, step: StepContext, group: int, call: AttentionCall
    ) -> torch.Tensor:
        plan: FlashPlan = step.groups[group].plan
        may_be_wide = reads_wide_pages(q_TNH.device, cache.shape[2], call)
        if may_be_wide and plan.bounds.prefill_rows:  # made by the first step that might need it, the largest
            room_for_pages(WIDE_TOKENS, cache, self.workspace)
        if plan.long_rows is None:
            return super().forward(q_TNH, cache, step, group, call)
        key = (q_TNH.dtype, call.head_dim, call.num_heads // call.num_kv_heads, call.window is None, call.soft_cap)
        if ahead.is_rehearsing():
            for pages in (None, self._pages(plan, cache)) if may_be_wide else (None,):
                name = ("flash", *key, pages is not None)
                arguments = _arguments(q_TNH, cache, plan.long_rows, call, pages)
                self._compilers.begin(name, arguments)
                ahead.compile_beside(name, self._compile, name, arguments)
            out = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        else:
            pages = self._pages(plan, cache) if may_be_wide and plan.is_wide else None
            name = ("flash", *key, pages is not None)
            ahead.wait_for(name)
            self._compilers.close()
            if pages is not None:
                copy_pages(cache, plan.long_rows, pages)
            found = self._attend(name, _arguments(q_TNH, cache, plan.long_rows, call, pages))
            if found is None:
                return super().forward(q_TNH, cache, step, group, call)
            out = found
        self.decode(q_TNH, cache, step, group, call, out)
        return out

    def _pages(self, plan: FlashPlan, cache: torch.Tensor) -> WidePages:
        line = (cache.shape[3], cache.shape[4])
        if line not in plan.pages:
            assert plan.long_rows is not None
            plan.pages[line] = list_pages(plan.long_rows, WIDE_TOKENS, cache, self.workspace)
        return plan.pages[line]

    def _compile(self, name: Hashable, arguments: dict[str, Any]) -> None:
        """What another process has compiled, this one reads from the disk."""
        self._compilers.wait(name)
        self._attend(name, arguments)

    def _attend(self, name: Hashable, arguments: dict[str, Any]) -> torch.Tensor | None:
        """None where FlashAttention-4 cannot be imported after all."""
        flash_attn_varlen_func = self._flash.function()
        if flash_attn_varlen_func is None:
            return None
        with nullcontext() if name in self._compiled else self._compiling:
            out: torch.Tensor = flash_attn_varlen_func(**arguments)[0]
        self._compiled.add(name)
        return out


def _arguments(
    q_TNH: torch.Tensor, cache: torch.Tensor, long_rows: LongRows, call: AttentionCall, pages: WidePages | None
) -> dict[str, Any]:
    """Of `flash_attn_varlen_func`."""
    keys, values, table = cache[:, 0], cache[:, 1], long_rows.block_table
    if pages is not None:
        keys, values, table = pages.keys, pages.values, pages.table
    return {
        "q": q_TNH,
        "k": keys,
        "v": values,
        "cu_seqlens_q": long_rows.query_start,
        "seqused_k": long_rows.seq_lens,
        "page_table": table,
        "softmax_scale": call.scale,
        "causal": True,
        "window_size": (None, None) if call.window is None else (call.window - 1, 0),
        "softcap": call.soft_cap or 0.0,
        "pack_gqa": None if pages is None else False,
    }


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def reads_wide_pages(device: torch.device, page: int, call: AttentionCall) -> bool:
    """Whether a layer's long rows may be read from wide pages, where a step's lengths make that worth while."""
    return (
        _capability(device)[0] == 9
        and WIDE % page == 0
        and call.window is None
        and call.head_dim <= WIDE_HEAD_DIM
        and call.num_kv_heads * call.head_dim <= WIDE_LINE
        and call.num_kv_heads < call.num_heads
    )
