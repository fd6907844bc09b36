"""From hidden states to a step's result: SampleFinish makes tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from octavo.core.step import NewRow, StepPlan, StepResult, TokenMasks
from octavo.runner.batch import Batch
from octavo.runner.model import Model
from octavo.runner.row_table import RowTable
from octavo.sampling.sampler import Sampler, SamplerOutput


class Finish(Protocol):
    def add(self, row: int, request: NewRow) -> None: ...
    def remove(self, row: int) -> None: ...
    def launch(self, batch: Batch, hidden: torch.Tensor, masks: TokenMasks | None) -> Any:
        """Everything that runs on the device."""

    def collect(self, plan: StepPlan, batch: Batch, launched: Any) -> StepResult:
        """Waits for the device and brings the result to the host."""


@dataclass(slots=True)
class Launched:
    output: SamplerOutput | None
    bad_rows: torch.Tensor  # [R] bool: hidden states that are not finite


class SampleFinish:
    """Samples the rows whose last known token was computed, and lets the row table know."""

    def __init__(self, model: Model, table: RowTable, sampler: Sampler) -> None:
        self._model = model
        self._table = table
        self._sampler = sampler

    def add(self, row: int, request: NewRow) -> None:
        prompt, output = request.token_ids[: request.num_prompt_tokens], request.token_ids[request.num_prompt_tokens :]
        self._sampler.add_row(row, request.params, request.seed, prompt, output, request.eos_token_ids)

    def remove(self, row: int) -> None:
        self._sampler.remove_row(row)

    def launch(self, batch: Batch, hidden: torch.Tensor, masks: TokenMasks | None = None) -> Launched:
        step = batch.step
        # any NaN or infinity in a token's state makes its sum one; float32, where a sum of finite states stays finite
        is_bad = ~torch.isfinite(hidden.sum(-1, dtype=torch.float32))
        bad_rows = torch.zeros(step.num_rows, dtype=torch.int32, device=hidden.device)
        bad_rows = bad_rows.index_add_(0, batch.row_of_token, is_bad.to(torch.int32)) > 0
        if batch.sampled == []:
            return Launched(None, bad_rows)
        last_tokens = step.query_start[1:].long() - 1
        if batch.sampled is None:
            rows, rows_host = step.rows, batch.rows_host
            if step.num_tokens != step.num_rows:
                hidden = hidden[last_tokens]
        else:
            picked = torch.tensor(batch.sampled, device=hidden.device)
            hidden, rows = hidden[last_tokens[picked]], step.rows[picked]
            rows_host = [batch.rows_host[i] for i in batch.sampled]
        logits = self._model.logits(hidden)
        output_positions = self._table.length[rows] - self._table.prompt_length[rows]
        output = self._sampler.sample(logits, rows, rows_host, output_positions, masks)
        self._table.append_sampled(rows, output.token_ids)
        return Launched(output, bad_rows)

    def collect(self, plan: StepPlan, batch: Batch, launched: Launched) -> StepResult:
        result = StepResult(plan.step_id, [])
        if launched.bad_rows.any():
            for i in launched.bad_rows.nonzero()[:, 0].tolist():
                result.failed[batch.request_ids[i]] = "its hidden states are not finite (NaN or infinity)"
        output = launched.output
        if output is not None:
            result.token_ids = output.token_ids.tolist()
            if output.nan.any():
                for i in output.nan.nonzero()[:, 0].tolist():
                    result.failed.setdefault(plan.sampled[i], "its logits are not finite (NaN)")
            for block in output.logprobs:
                for i, logprobs in block.rows():
                    result.logprobs[plan.sampled[i]] = logprobs
        return result
