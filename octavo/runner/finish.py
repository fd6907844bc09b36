"""From hidden states to a step's result: SampleFinish makes tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from octavo.core.params import LogprobsMode
from octavo.core.step import NewRow, StepPlan, StepResult, TokenMasks
from octavo.ops.device import Arrival, HostCopies
from octavo.runner.batch import Batch
from octavo.runner.model import Model
from octavo.runner.row_table import RowTable
from octavo.sampling.prompt_logprobs import PromptScorer, ScoredBlock, Segment
from octavo.sampling.sampler import Sampler, SamplerOutput


class Finish(Protocol):
    def add(self, row: int, request: NewRow) -> None: ...
    def remove(self, row: int) -> None: ...
    def launch(self, batch: Batch, hidden: torch.Tensor, bad_rows: torch.Tensor, masks: TokenMasks | None) -> Any:
        """Everything that runs on the device. `bad_rows` [R] bool: those whose hidden states are not finite."""

    def collect(self, plan: StepPlan, batch: Batch, launched: Any) -> StepResult:
        """Waits for the device and brings the result to the host."""


@dataclass(slots=True)
class Launched:
    """On its way to the host: bad_rows [R], the tensors of prompts' log-probabilities and, where anything is sampled,
    token ids and largest logits [S], then the tensors of log-probabilities."""

    arrival: Arrival
    scored: list[ScoredBlock]
    output: SamplerOutput | None


class SampleFinish:
    """Samples the rows whose last known token was computed, and lets the row table know."""

    def __init__(
        self, model: Model, table: RowTable, sampler: Sampler, logprobs_mode: LogprobsMode = "raw_logprobs"
    ) -> None:
        self._model = model
        self._table = table
        self._sampler = sampler
        self._scorer = PromptScorer(model.vocab_size, model.logits, table.tokens, mode=logprobs_mode)
        self._copies = HostCopies(table.computed.device)

    def add(self, row: int, request: NewRow) -> None:
        prompt, output = request.token_ids[: request.num_prompt_tokens], request.token_ids[request.num_prompt_tokens :]
        self._sampler.add_row(row, request.params, request.seed, prompt, output, request.eos_token_ids)
        self._scorer.add_row(row, request.params, request.num_prompt_tokens)

    def remove(self, row: int) -> None:
        self._scorer.remove_row(row)
        self._sampler.remove_row(row)

    def launch(
        self, batch: Batch, hidden: torch.Tensor, bad_rows: torch.Tensor, masks: TokenMasks | None = None
    ) -> Launched:
        rows = batch.sampled_rows
        scored = self._scorer.score(hidden, _segments(batch)) if batch.scored else []
        first = [bad_rows, *(tensor for block in scored for tensor in block.tensors)]
        if not batch.sampled_rows_host:
            return Launched(self._copies.start(*first), scored, None)
        hidden = hidden[: len(rows)] if batch.sampled_tokens is None else hidden[batch.sampled_tokens]
        logits = self._model.logits(hidden)
        output_positions = self._table.length[rows] - self._table.prompt_length[rows]
        output = self._sampler.sample(logits, rows, batch.sampled_rows_host, output_positions, masks)
        self._table.append_sampled(rows, output.token_ids)
        tensors = [tensor for block in output.logprobs for tensor in block.tensors]
        arrival = self._copies.start(*first, output.token_ids, output.greatest, *tensors)
        return Launched(arrival, scored, output)

    def collect(self, plan: StepPlan, batch: Batch, launched: Launched) -> StepResult:
        result = StepResult(plan.step_id, [])
        bad_rows, *sampled = launched.arrival.wait()
        output = launched.output
        if bad_rows.any():
            for i in bad_rows.nonzero()[:, 0].tolist():
                result.failed[batch.request_ids[i]] = "its hidden states are not finite (NaN or infinity)"
        for scored in launched.scored:
            arrived, sampled = sampled[: len(scored.tensors)], sampled[len(scored.tensors) :]
            for request_id, prompt_rows in scored.rows(arrived):
                if prompt_rows is None:
                    result.failed.setdefault(request_id, "its prompt's logits are not finite (NaN)")
                else:
                    result.prompt_rows[request_id] = prompt_rows
        if output is not None:
            token_ids, greatest, *tensors = sampled
            result.token_ids = token_ids.tolist()
            broken = ~torch.isfinite(greatest)
            if broken.any():
                has_own = {i for i, tokens in output.followed if tokens.processors}
                for i in broken.nonzero()[:, 0].tolist():
                    self._blame(result, plan.sampled[i], float(greatest[i]), i in has_own)
            for i, tokens in output.followed:
                tokens.output_token_ids.append(result.token_ids[i])
            for i, reason in output.refused.items():
                result.refused[plan.sampled[i]] = reason
            for block in output.logprobs:
                for i, logprobs in block.rows(tensors[:3]):
                    result.logprobs[plan.sampled[i]] = logprobs
                del tensors[:3]
        return result

    @staticmethod
    def _blame(result: StepResult, request_id: str, greatest: float, has_processors: bool) -> None:
        """A row without a finite largest logit. A model gives every token some chance: where none has any, masks and
        biases left it nothing."""
        if request_id in result.failed:
            return
        if greatest == -math.inf:
            result.refused[request_id] = "no token is left that it may have: all are ruled out"
        elif has_processors:
            result.refused[request_id] = "its logits processors made logits that are not finite (NaN or infinity)"
        else:
            result.failed[request_id] = "its logits are not finite (NaN)"


def _segments(batch: Batch) -> list[Segment]:
    """Where the hidden states of scored positions are."""
    segments, start = [], 0
    for i, request_id in enumerate(batch.request_ids):
        count = batch.step.query_lens[i]
        if request_id in batch.scored:
            first, end = batch.scored[request_id]
            computed = batch.step.max_seq_lens[i] - count  # before this step
            segments.append(Segment(request_id, batch.rows_host[i], start + first - computed, first, end))
        start += count
    return segments
