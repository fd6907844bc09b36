"""Logits to tokens for the rows of a step, each by its own request's parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.config.engine_config import SamplingConfig
from octavo.core.params import SamplingParams
from octavo.core.step import TokenMasks
from octavo.ops import dispatch
from octavo.ops import sampling as ops
from octavo.ops.device import upload, upload_array
from octavo.sampling.engine_processors import EngineProcessors
from octavo.sampling.logprobs import LogprobBlock, LogprobGroup, LogprobWishes
from octavo.sampling.parts import Part, users_part
from octavo.sampling.penalties import TokenCounts
from octavo.sampling.processor_thread import Job, ProcessorThread
from octavo.sampling.request_processors import RowTokens, bind
from octavo.sampling.token_edits import BatchEdits, TokenEdits, TokenHistory

# Rows of the parameter tables, which have a column for each row of the row table
TEMPERATURE, TOP_P, MIN_P, REPETITION, FREQUENCY, PRESENCE = range(6)
SEED, TOP_K, MIN_TOKENS = range(3)

FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(slots=True)
class SamplerOutput:
    """What came of S rows. Everything is still on its way on the device."""

    token_ids: Tensor  # int64 [S]; of a failed row, some id of the vocabulary
    greatest: Tensor  # [S]: each row's largest logit; a row where it is not finite has failed
    logprobs: list[LogprobBlock] = field(default_factory=list)  # empty if nobody asked
    followed: list[tuple[int, RowTokens]] = field(default_factory=list)  # rows whose processors are to see the token
    refused: dict[int, str] = field(default_factory=dict)  # rows whose own processors failed: why

    @property
    def nan(self) -> Tensor:
        """Bool [S]: rows whose logits have no finite maximum."""
        return ~torch.isfinite(self.greatest)


@dataclass(slots=True)
class Parts:
    """Who uses what in a batch; None where nobody does, and then that feature's code does not run."""

    random: Part | None
    truncated: Part | None  # among the random rows, and counted within them
    penalised: Part | None
    slots: Tensor | None  # of the penalised rows in the token counts
    min_tokens: Part | None
    edits: BatchEdits | None
    logprobs: list[LogprobGroup]
    followed: list[tuple[int, RowTokens]]  # rows that some processor sees

    @property
    def needs_float(self) -> bool:
        return bool(self.penalised or self.min_tokens or self.edits or self.logprobs or self.followed)

    @property
    def changes_logits(self) -> bool:
        return bool(
            self.penalised
            or self.min_tokens
            or self.edits
            or self.followed
            or (self.random and self.random.idx is None)
        )


class Sampler:
    """Keeps the parameters of every live row on the device and samples the rows of each step by them.

    Order: raw log-probabilities are set aside; masks of grammars; allowed_token_ids, bad_words, logit_bias; min_tokens
    masks; logits processors, the engine's and the request's; penalties; greedy rows take the maximum; random rows:
    temperature, processors that leave the likeliest token so, min_p, top_k, top_p, draw. Processed
    log-probabilities are of what a row's token is taken from. A draw is a function of (seed, output position), so it
    does not depend on the batch, on the depth of the pipeline or on preemption. The host's sets only say which code to
    run. Owned by the runner's thread.
    """

    def __init__(
        self,
        max_rows: int,
        vocab_size: int,
        device: torch.device | str,
        history: TokenHistory | None = None,
        config: SamplingConfig = SamplingConfig(),  # noqa: B008
        processors: EngineProcessors | None = None,
    ) -> None:
        """`history` is what bad words are found in; `processors` are the engine's own, if it has any."""
        self.vocab_size, self.device = vocab_size, torch.device(device)
        self._history = history
        self._edits = TokenEdits(vocab_size, self.device)
        self._wishes = LogprobWishes(vocab_size, config.logprobs_mode, self.device)
        self._processors = processors
        self._thread = ProcessorThread(config.processor_timeout, self.device)
        self._tokens: dict[int, RowTokens] = {}  # of the rows that some processor sees
        self._floats = torch.zeros(6, max_rows, dtype=torch.float32, device=self.device)
        self._ints = torch.zeros(3, max_rows, dtype=torch.int64, device=self.device)
        self._stop_ids = torch.zeros(max_rows, 0, dtype=torch.int64, device=self.device)  # padded with the row's first
        self._counts = TokenCounts(vocab_size, self.device)
        self._random: set[int] = set()
        self._truncated: set[int] = set()
        self._min_tokens: set[int] = set()
        self._staged: dict[int, tuple[list[float], list[int]]] = {}  # rows added since the last step
        self._parts: tuple[list[int], Parts] | None = None  # of the last batch, while no row changed

    def add_row(
        self,
        row: int,
        params: SamplingParams,
        seed: int,
        prompt_token_ids: list[int],
        output_token_ids: list[int],
        eos_token_ids: frozenset[int],
    ) -> None:
        """Takes `row` for a request, new or resumed (then `output_token_ids` are the tokens it already has).

        `eos_token_ids` are what min_tokens holds back beside the request's stop ids. Any integer is a `seed`.
        """
        self.remove_row(row)
        if not params.is_greedy:
            self._random.add(row)
            if params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0:
                self._truncated.add(row)
        if params.repetition_penalty != 1.0 or params.frequency_penalty or params.presence_penalty:
            self._counts.add(row, prompt_token_ids, output_token_ids)
        self._edits.add(row, params)
        self._wishes.add(row, params)
        own = [bind(processor, i) for i, processor in enumerate(params.logits_processors or ())]
        if own or self._processors:
            self._tokens[row] = RowTokens(params, list(prompt_token_ids), list(output_token_ids), own)
        if params.min_tokens > len(output_token_ids):
            stop_ids = {*eos_token_ids, *(params.stop_token_ids or ())}
            if held_back := sorted(token_id for token_id in stop_ids if 0 <= token_id < self.vocab_size):
                self._min_tokens.add(row)
                self._write_stop_ids(row, held_back)
        self._staged[row] = (
            [
                0.0 if params.is_greedy else min(params.temperature, FLOAT32_MAX),
                params.top_p,
                params.min_p,
                min(params.repetition_penalty, FLOAT32_MAX),
                params.frequency_penalty,
                params.presence_penalty,
            ],
            [(seed + 2**63) % 2**64 - 2**63, min(params.top_k, self.vocab_size), params.min_tokens],
        )

    def remove_row(self, row: int) -> None:
        """Forgets the request of `row`, if it has one."""
        self._parts = None
        self._random.discard(row)
        self._truncated.discard(row)
        self._min_tokens.discard(row)
        self._edits.remove(row)
        self._wishes.remove(row)
        self._tokens.pop(row, None)
        self._staged.pop(row, None)
        if row in self._counts.slot_of_row:
            self._counts.remove(row)

    def sample(
        self,
        logits_SV: Tensor,
        rows: Tensor,
        rows_host: list[int],
        output_positions: Tensor,
        masks: TokenMasks | None = None,
    ) -> SamplerOutput:
        """One token for each of S rows; `logits_SV`, of any floating dtype, may be overwritten.

        `rows` (int64 [S], and the same on the host) are the rows' places in the table, `output_positions` (int64 [S])
        the number of output tokens each has so far. `masks` are of some of the rows.
        """
        self._write_staged()
        parts = self._split(rows_host)
        if parts.needs_float or masks is not None or not dispatch.is_specialised("choose_tokens"):
            logits_SV = logits_SV.float()
        aside = self._set_raw_aside(logits_SV, parts, masks is not None)
        if masks is not None:
            ops.apply_bitmask(
                logits_SV, upload(masks.places, torch.int64, self.device), upload_array(masks.bits, self.device)
            )
        if parts.edits:
            parts.edits.apply(logits_SV, rows, output_positions, self._history)
        if parts.min_tokens:
            self._hold_stops_back(logits_SV, parts.min_tokens, rows, output_positions)
        refused: dict[int, str] = {}
        if parts.followed:
            logits_SV, refused = self._process(logits_SV, parts)
        if parts.penalised:
            logits_SV = self._penalise(logits_SV, parts, rows)
        is_scaled = self._processors is not None and self._processors.has_invariant and parts.random is not None
        if is_scaled:
            logits_SV = self._change_scaled(logits_SV, rows)
        if any(group.is_processed for group in parts.logprobs):
            aside = [
                self._processed(logits_SV, group.part, rows, is_scaled) if group.is_processed else raw
                for group, raw in zip(parts.logprobs, aside, strict=True)
            ]
        token_ids, greatest = self._choose(logits_SV, parts, rows, output_positions, is_scaled)
        if parts.penalised and parts.slots is not None:
            self._counts.count(parts.slots, parts.penalised.take(token_ids))
        blocks = [group.block(logits, token_ids) for group, logits in zip(parts.logprobs, aside, strict=True)]
        return SamplerOutput(token_ids, greatest, blocks, parts.followed, refused)

    def _choose(
        self, logits_SV: Tensor, parts: Parts, rows: Tensor, output_positions: Tensor, is_scaled: bool
    ) -> tuple[Tensor, Tensor]:
        """Token ids, and each row's largest logit. `is_scaled`: random rows are divided by their temperature."""
        random = parts.random
        if random is None:
            return ops.argmax(logits_SV)
        if dispatch.is_specialised("choose_tokens"):  # then it is as cheap for all rows as for some
            floats, ints = self._floats[:, rows], self._ints[:, rows]
            temperature = floats[TEMPERATURE].sign() if is_scaled else floats[TEMPERATURE]
            return ops.choose_tokens(
                logits_SV, temperature, ints[TOP_K], floats[TOP_P], floats[MIN_P], ints[SEED], output_positions
            )
        random_rows = random.take(rows)
        floats, ints = self._floats[:, random_rows], self._ints[:, random_rows]
        scaled = random.take(logits_SV)
        if not is_scaled:
            scaled = scaled.div_(floats[TEMPERATURE, :, None])
        if parts.truncated:
            those = parts.truncated
            top_k, top_p, min_p = (those.take(column) for column in (ints[TOP_K], floats[TOP_P], floats[MIN_P]))
            scaled = those.put(scaled, ops.mask_truncated(those.take(scaled), top_k, top_p, min_p))
        uniform = ops.row_uniform(ints[SEED], random.take(output_positions))
        drawn, greatest_drawn = ops.sample(scaled, uniform), scaled.amax(-1)
        if random.idx is None:
            return drawn, greatest_drawn
        token_ids, greatest = ops.argmax(logits_SV)
        return random.put(token_ids, drawn), random.put(greatest, greatest_drawn)

    def _process(self, logits_SV: Tensor, parts: Parts) -> tuple[Tensor, dict[int, str]]:
        """By the engine's processors, then each row by its own. Rows whose own fail stay as they were: why."""
        if self._processors is not None:
            self._processors.update([tokens for _, tokens in parts.followed])
            logits_SV = self._processors.change(logits_SV)
        live = [(i, tokens) for i, tokens in parts.followed if tokens.processors and not tokens.is_refused]
        if not live:
            return logits_SV, {}
        jobs = [Job(tokens, logits_SV[i].clone()) for i, tokens in live]
        self._thread.run(jobs)
        refused: dict[int, str] = {}
        for (i, tokens), job in zip(live, jobs, strict=True):
            if job.error is not None:
                refused[i], tokens.is_refused = job.error, True
        done = [(i, job.logits) for (i, _), job in zip(live, jobs, strict=True) if i not in refused]
        if done:
            places = upload([i for i, _ in done], torch.int64, self.device)
            logits_SV.index_copy_(0, places, torch.stack([logits_V for _, logits_V in done]))
        return logits_SV, refused

    def _change_scaled(self, logits_SV: Tensor, rows: Tensor) -> Tensor:
        """Random rows divided by their temperature and changed by the processors that leave the likeliest token so."""
        assert self._processors is not None
        temperature = self._floats[TEMPERATURE, rows][:, None]
        is_greedy = temperature == 0
        changed = self._processors.change_scaled(logits_SV / torch.where(is_greedy, 1.0, temperature))
        return torch.where(is_greedy, logits_SV, changed)

    def _penalise(self, logits_SV: Tensor, parts: Parts, rows: Tensor) -> Tensor:
        assert parts.penalised is not None and parts.slots is not None
        floats = self._floats[:, parts.penalised.take(rows)]
        penalised = self._counts.penalise(
            parts.penalised.take(logits_SV),
            parts.slots,
            floats[REPETITION],
            floats[FREQUENCY],
            floats[PRESENCE],
        )
        return parts.penalised.put(logits_SV, penalised)

    def _hold_stops_back(self, logits_SV: Tensor, part: Part, rows: Tensor, output_positions: Tensor) -> None:
        part_rows = part.take(rows)
        is_early = part.take(output_positions) < self._ints[MIN_TOKENS, part_rows]
        stop_ids = self._stop_ids[part_rows]
        masked = part.take(logits_SV)
        held = masked.gather(1, stop_ids).masked_fill(is_early[:, None], -torch.inf)
        masked.scatter_(1, stop_ids, held)
        if part.idx is not None:
            part.put(logits_SV, masked)

    def _set_raw_aside(self, logits_SV: Tensor, parts: Parts, has_masks: bool) -> list[Tensor]:
        """The logits of the rows that asked for log-probabilities, as the model gave them."""
        is_kept = not has_masks and not parts.changes_logits
        return [
            logits_SV if group.is_processed else (group.part.take if is_kept else group.part.copy)(logits_SV)
            for group in parts.logprobs
        ]

    def _processed(self, logits_SV: Tensor, part: Part, rows: Tensor, is_scaled: bool) -> Tensor:
        """What each row of a part takes its token from: divided by its temperature, dropped tokens minus infinity."""
        part_rows = part.take(rows)
        floats, ints = self._floats[:, part_rows], self._ints[:, part_rows]
        scaled = part.take(logits_SV)
        if not is_scaled:
            temperature = floats[TEMPERATURE]
            scaled = scaled / torch.where(temperature == 0, 1.0, temperature)[:, None]
        return ops.mask_truncated(scaled, ints[TOP_K], floats[TOP_P], floats[MIN_P])

    def _split(self, rows_host: list[int]) -> Parts:
        """Who uses what. Kept over steps: while a batch stays the same, it is split once."""
        if self._parts is not None and self._parts[0] == rows_host:
            return self._parts[1]
        random = users_part(rows_host, self._random, self.device)
        penalised = users_part(rows_host, self._counts.slot_of_row, self.device)
        parts = Parts(
            random=random,
            truncated=users_part([rows_host[i] for i in random.members], self._truncated, self.device)
            if random
            else None,
            penalised=penalised,
            slots=self._counts.slots(rows_host[i] for i in penalised.members) if penalised else None,
            min_tokens=users_part(rows_host, self._min_tokens, self.device),
            edits=self._edits.batch(rows_host),
            logprobs=self._wishes.groups(rows_host),
            followed=[(i, self._tokens[row]) for i, row in enumerate(rows_host) if row in self._tokens]
            if self._tokens
            else [],
        )
        self._parts = (list(rows_host), parts)
        return parts

    def _write_staged(self) -> None:
        if not self._staged:
            return
        places = upload(list(self._staged), torch.int64, self.device)
        floats, ints = zip(*self._staged.values(), strict=True)
        self._floats.index_copy_(1, places, upload(floats, torch.float32, self.device).T)
        self._ints.index_copy_(1, places, upload(ints, torch.int64, self.device).T)
        self._staged.clear()

    def _write_stop_ids(self, row: int, ids: list[int]) -> None:
        width = self._stop_ids.shape[1]
        if len(ids) > width:
            filler = self._stop_ids[:, :1] if width else self._stop_ids.new_zeros(self._stop_ids.shape[0], 1)
            self._stop_ids = torch.cat([self._stop_ids, filler.expand(-1, len(ids) - width)], dim=1)
            width = len(ids)
        padded = ids + ids[:1] * (width - len(ids))
        self._stop_ids[row] = upload(padded, torch.int64, self.device)
