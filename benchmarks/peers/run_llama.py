"""llama.cpp, inside llama-cpp-python, in a process of compare_cpu.py: its C interface, called as its own batched
example does it: prompts of several sequences in one batch, then a token of each sequence a step; a shared beginning is
computed once and its cells shared."""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from typing import Any

import llama_cpp as lib
import numpy as np
from session import Job, Prompts, Work, run

_BATCH = 2048  # tokens in one call, llama.cpp's default; it computes 512 of them at a time


@lib.llama_log_callback
def _silent(level: int, text: bytes, user_data: Any) -> None:
    pass


class Llama:
    def __init__(self, job: Job) -> None:
        self.version = f"llama-cpp-python {version('llama-cpp-python')}"
        self.settings: dict[str, Any] = {
            "threads": job.threads,
            "n_batch": _BATCH,
            "system": lib.llama_print_system_info().decode(),
        }
        self._threads = job.threads
        lib.llama_log_set(_silent, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(job.model.encode(), lib.llama_model_default_params())
        if not self._model:
            raise ValueError(f"{job.model} was not loaded")
        self._vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(_BATCH, 0, 1)
        self._context: Any = None

    def prepare(self, work: Work) -> None:
        """A context of the workload's size: one stream of cells for each sequence, or one for all where they share."""
        requests = list(zip(*work.warm_up, strict=True))
        for prompts in work.repetitions:
            requests += zip(prompts, work.outputs, strict=True)
        longest = max([64, *(len(prompt) + output for prompt, output in requests)])
        count = max([len(work.outputs), len(work.warm_up[1])])
        params = lib.llama_context_default_params()
        params.n_ctx = -(-longest // 256) * 256 * count
        params.n_batch = _BATCH
        params.n_seq_max = count
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = work.shared > 0
        if self._context is not None:
            lib.llama_free(self._context)
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError(f"no context of {params.n_ctx} tokens for {count} sequences")

    def generate(self, prompts: Prompts, outputs: list[int], shared: int) -> list[int]:
        memory = lib.llama_get_memory(self._context)
        lib.llama_memory_clear(memory, False)
        counts = [0] * len(prompts)
        if shared:
            self._decode([(token, position, 0, False) for position, token in enumerate(prompts[0][:shared])])
            for sequence in range(1, len(prompts)):
                lib.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        tokens = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
            if position >= shared
        ]
        last = self._decode(tokens)
        positions = [len(prompt) for prompt in prompts]
        while True:
            for sequence in last:
                counts[sequence] += 1
            going = [sequence for sequence in last if counts[sequence] < outputs[sequence]]
            if not going:
                return counts
            step = [(last[sequence], positions[sequence], sequence, True) for sequence in going]
            for sequence in going:
                positions[sequence] += 1
            last = self._decode(step)

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """(token, position, sequence, is its successor wanted) of each → the likeliest successors by sequence."""
        batch, found = self._batch, {}
        for start in range(0, len(tokens), _BATCH):
            part = tokens[start : start + _BATCH]
            batch.n_tokens = len(part)
            for index, (token, position, sequence, wanted) in enumerate(part):
                batch.token[index] = token
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = wanted
            if lib.llama_decode(self._context, batch) != 0:
                raise ValueError("llama_decode failed")
            for index, (_, _, sequence, wanted) in enumerate(part):
                if wanted:
                    logits = lib.llama_get_logits_ith(self._context, index)
                    found[sequence] = int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
        return found


if __name__ == "__main__":
    run(Llama)
