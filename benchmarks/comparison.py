"""The rows of compare_cpu.py: what each means, its floor, ratios to the best peer, the table. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

OURS = "octavo"
ENGINES = (OURS, "vllm", "llama.cpp", "transformers")
GIB = 1 << 30
BUSY = 0.1  # share of the machine that others may take of a figure that counts

# --- floors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What a program can hope for: bytes from memory beyond the caches, bf16 matrix products that a library reaches."""

    bandwidth: float = 28.5e9  # bytes a second
    products: float = 2.1e12  # operations a second


@dataclass(frozen=True)
class ModelSize:
    """What a step must read and multiply."""

    layer_weights: int  # numbers in the matrices of all layers
    head_weights: int  # of the output head, which is also the embedding
    layers: int
    attention_width: int  # query heads times their size
    kv_width: int  # key/value heads times their size
    layer_bytes: float = 2.0  # of a number
    head_bytes: float = 2.0
    kv_bytes: float = 2.0

    @property
    def weight_bytes(self) -> float:
        return self.layer_weights * self.layer_bytes + self.head_weights * self.head_bytes

    @property
    def token_bytes(self) -> int:
        """Keys and values of a token."""
        return int(self.layers * 2 * self.kv_width * self.kv_bytes)


_SMOLLM2 = (30 * (576 * 960 + 576 * 576 + 3 * 576 * 1536), 49_152 * 576, 30, 576, 192)
SMOLLM2 = ModelSize(*_SMOLLM2)
SMOLLM2_Q4_1 = ModelSize(*_SMOLLM2, layer_bytes=20 / 32, head_bytes=34 / 32)
QWEN3 = ModelSize(28 * (1024 * 4096 + 2048 * 1024 + 3 * 1024 * 3072), 151_936 * 1024, 28, 2048, 1024)
QWEN3_INT8 = replace(QWEN3, kv_bytes=132 / 128)  # keys and values: a byte each, and a scale for each head of 128


def floor_seconds(
    model: ModelSize, lengths: Sequence[tuple[int, int]], machine: Machine, shared: int = 0, together: int | None = None
) -> float:
    """Of a workload with these (prompt, output) lengths, of which `together` run at a time: prompts at the rate of
    products, then steps of all rows, each the longer of what it reads and what it multiplies. What is shared is
    computed once and read once."""
    count = len(lengths)
    together = min(together or count, count)
    operations = 0.0
    for place, (prompt, _) in enumerate(lengths):
        first = shared if place else 0
        operations += 2.0 * (prompt - first) * model.layer_weights + 2.0 * model.head_weights
        operations += 2.0 * model.layers * model.attention_width * (prompt**2 - first**2)  # causal: half of 4 T²
    seconds = max(operations / machine.products, model.weight_bytes / machine.bandwidth)
    for start in range(0, count, together):
        rows = lengths[start : start + together]
        for step in range(1, max(output for _, output in rows)):
            contexts = [prompt + step for prompt, output in rows if output > step]
            cached = shared + sum(context - shared for context in contexts)
            num_bytes = model.weight_bytes + cached * model.token_bytes
            work = len(contexts) * 2.0 * (model.layer_weights + model.head_weights)
            work += 4.0 * model.layers * model.attention_width * sum(contexts)
            seconds += max(num_bytes / machine.bandwidth, work / machine.products)
    return seconds


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """`reach` and `aim` are ratios to the best peer, or figures in the row's unit where `absolute` is set."""

    key: str
    title: str
    unit: str
    higher_is_better: bool = True
    reach: float | None = None
    aim: float | None = None
    absolute: bool = False

    def value(self, count: float, seconds: float) -> float:
        """A rate, or the time itself."""
        return count / seconds if self.higher_is_better else seconds

    def ratio(self, ours: float, theirs: float) -> float:
        """Above 1 where ours is the better figure, whichever way it points."""
        return ours / theirs if self.higher_is_better else theirs / ours


ROWS = (
    Row("start", "start to first token, server, second start, bf16", "s", False, 4, 3, absolute=True),
    Row("start-q4_1", "the same, Q4_1", "s", False),
    Row("start-process", "the same in one process without a server, bf16", "s", False),
    Row("one-stream", "one stream, bf16, 128 in 128 out", "tok/s", True, 1.3, 1.8),
    Row("decode", "of it without the prompt: decoding alone, bf16", "tok/s"),
    Row("one-stream-q4_1", "one stream, Q4_1, 128 in 128 out", "tok/s", True, 1.0, 1.5),
    Row("decode-q4_1", "of it without the prompt: decoding alone, Q4_1", "tok/s"),
    Row("prefill", "prefill of 1,024 tokens, bf16", "tok/s", True, 1.3, 2.4),
    Row("prefill-q4_1", "prefill of 1,024 tokens, Q4_1", "tok/s", True, 4.0, 9.0),
    Row("batch", "batch: 64 requests, in U[32,512], out 128, bf16", "out tok/s", True, 1.5, 2.0),
    Row("shared-prefix", "shared prefix: 64 x (512 + 32) in, 32 out, bf16", "req/s", True, 1.6, 2.5),
    Row("server", "server, 32 streams, 128 in 64 out, 96 requests, bf16", "out tok/s", True, 1.5, 2.0),
    Row("server-ttft", "of it time to the first token, p50", "ms", False),
    Row("server-itl", "of it time between tokens, p50", "ms", False),
    Row("server-q4_1", "the same server workload, Q4_1", "out tok/s"),
    Row("qwen3-one-stream", "Qwen3-0.6B shape, random bf16: one stream", "tok/s", True, 1.2, 1.5),
    Row("qwen3-batch", "Qwen3-0.6B shape, random bf16: batch", "out tok/s", True, 1.3, 1.6),
    Row("qwen3-batch-int8", "the same with keys and values in int8", "out tok/s"),
    Row("memory", "peak memory serving with a 1 GiB cache, bf16", "GB", False, 2.0, 1.5, absolute=True),
    Row("memory-q4_1", "the same, Q4_1", "GB", False),
)
BY_KEY = {row.key: row for row in ROWS}

# --- figures ---------------------------------------------------------------------------------------------------------

# Figures by row, then by engine: {"value": 13.2, "all": [...], "others": 0.02, "earlier": "2026-01-31", ...}; the table
# needs "value". `others`: the share of the machine that other programs took meanwhile.
Figures = dict[str, dict[str, dict[str, Any]]]
Standing = Literal["aim", "reach", "below", ""]


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def best_peer(row: Row, figures: Figures) -> str | None:
    peers = [engine for engine in figures.get(row.key, {}) if engine != OURS]
    if not peers:
        return None
    pick = max if row.higher_is_better else min
    return pick(peers, key=lambda engine: figures[row.key][engine]["value"])


def ratio(row: Row, figures: Figures) -> float | None:
    peer, ours = best_peer(row, figures), figures.get(row.key, {}).get(OURS)
    return None if peer is None or ours is None else row.ratio(ours["value"], figures[row.key][peer]["value"])


def standing(row: Row, figures: Figures) -> Standing:
    """How far octavo is; "" where there is no target, no figure, or no peer to compare with."""
    ours = figures.get(row.key, {}).get(OURS)
    if row.reach is None or row.aim is None or ours is None:
        return ""
    if row.absolute:
        reached, aimed = row.ratio(ours["value"], row.reach) >= 1, row.ratio(ours["value"], row.aim) >= 1
    else:
        found = ratio(row, figures)
        if found is None:
            return ""
        reached, aimed = found >= row.reach, found >= row.aim
    return "aim" if aimed else "reach" if reached else "below"


def with_earlier_peers(figures: Figures, earlier: Mapping[str, Any], machine: Mapping[str, Any]) -> Figures:
    """Peers' figures of an earlier report where this run has none, marked with its date. Raises ValueError where that
    report is of another machine or not one of ours."""
    try:
        theirs, when, old = earlier["machine"], earlier["when"], earlier["figures"]
    except (KeyError, TypeError):
        raise ValueError("the earlier report has no machine, when and figures: is it of compare_cpu.py?") from None
    for name in ("processor", "cores"):
        if theirs.get(name) != machine[name]:
            raise ValueError(
                f"the earlier report is of another machine: {name} {theirs.get(name)}, here {machine[name]}"
            )
    merged = {key: dict(cells) for key, cells in figures.items()}
    for key, cells in old.items():
        for engine, cell in cells.items():
            if engine != OURS and key in BY_KEY and engine not in merged.get(key, {}):
                merged.setdefault(key, {})[engine] = {**cell, "earlier": cell.get("earlier", when)}
    return merged


# --- for readers -----------------------------------------------------------------------------------------------------


def digits(value: float) -> str:
    """Three that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(figures: Figures, floors: Mapping[str, float], rows: Sequence[Row] = ROWS) -> str:
    """Markdown. The best peer's figure is bold; one of an earlier run has a star, one taken beside busy programs ~."""
    engines = [engine for engine in ENGINES if any(engine in figures.get(row.key, {}) for row in rows)]
    lines = [
        "| " + " | ".join(["workload", "unit", *engines, "floor", "ratio", "reach", "aim", ""]) + " |",
        "|" + "---|" * (len(engines) + 7),
    ]
    for row in rows:
        cells = figures.get(row.key)
        if not cells:
            continue
        best = best_peer(row, figures)
        shown = []
        for engine in engines:
            text = digits(cells[engine]["value"]) if engine in cells else "-"
            text = f"**{text}**" if engine == best else text
            cell = cells.get(engine, {})
            shown.append(text + ("~" if cell.get("others", 0) > BUSY else "") + ("*" if "earlier" in cell else ""))
        floor, found = floors.get(row.key), ratio(row, figures)
        unit, times = (f" {row.unit}", "") if row.absolute else ("", " x")
        lines.append(
            "| "
            + " | ".join(
                [
                    row.title,
                    row.unit,
                    *shown,
                    "-" if floor is None else digits(floor),
                    "-" if found is None else f"{found:.2f} x",
                    *("" if goal is None else f"{goal:g}{unit or times}" for goal in (row.reach, row.aim)),
                    standing(row, figures),
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def notes(report: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know beside it."""
    said = []
    earlier = {cell["earlier"] for cells in report["figures"].values() for cell in cells.values() if "earlier" in cell}
    if earlier:
        said.append(f"* measured in an earlier run on this machine ({', '.join(sorted(earlier))}), not beside octavo")
    said += [f"not measured: {lack['engine']}, {lack['what']}: {lack['why']}" for lack in report["lacking"]]
    busy = [cell["others"] for cells in report["figures"].values() for cell in cells.values() if "others" in cell]
    busy = sorted(share for share in busy if share > BUSY)
    if busy:
        said.append(f"~ provisional: other programs took {busy[0]:.0%} to {busy[-1]:.0%} of the machine meanwhile")
    return said


def plot(figures: Figures, path: Path) -> None:
    """Bars: each engine's figure as a multiple of the best peer's, a row of bars for each row with a target.

    Raises ImportError without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in ROWS if row.reach is not None and best_peer(row, figures) and OURS in figures[row.key]]
    colours = {OURS: "#c2410c", "vllm": "#2563eb", "llama.cpp": "#16a34a", "transformers": "#a16207"}
    figure, axes = pyplot.subplots(figsize=(9, 0.62 * len(rows) + 1.2))
    height = 0.8 / len(ENGINES)
    for place, row in enumerate(rows):
        peer = best_peer(row, figures)
        assert peer is not None
        best = figures[row.key][peer]["value"]
        for turn, engine in enumerate(ENGINES):
            if engine not in figures[row.key]:
                continue
            value = figures[row.key][engine]["value"]
            length, y = row.ratio(value, best), place + (turn - (len(ENGINES) - 1) / 2) * height
            axes.barh(y, length, height, color=colours[engine], label=engine)
            axes.text(length, y, f" {digits(value)} {row.unit}", va="center", fontsize=6)
        if not row.absolute and row.reach is not None:
            axes.plot([row.reach] * 2, [place - 0.4, place + 0.4], color="black", linewidth=0.8, linestyle=":")
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("times the best peer (longer is better; dotted: the target)", fontsize=8)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=7, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
