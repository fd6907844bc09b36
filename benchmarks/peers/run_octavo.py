"""octavo in a process of compare_cpu.py: its defaults, but for the limits that every engine gets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from session import Job, Prompts, Work, run

import octavo


class Octavo:
    def __init__(self, job: Job) -> None:
        self.version = f"octavo {octavo.__version__}"
        self.settings: dict[str, Any] = {
            "max_model_len": job.max_model_len,
            "max_num_seqs": job.max_num_seqs,
            "threads": job.threads,
            "skip_tokenizer_init": True,
        }
        if job.kv_cache_dtype is not None:
            self.settings["kv_cache_dtype"] = job.kv_cache_dtype
        self.llm = octavo.LLM(job.model, **self.settings)

    def prepare(self, work: Work) -> None:
        pass

    def generate(self, prompts: Prompts, outputs: list[int], shared: int) -> list[int]:
        params = [
            octavo.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
            for count in outputs
        ]
        results = self.llm.generate(prompts, params, use_tqdm=False)
        return [len(result.outputs[0].token_ids) for result in results]


if __name__ == "__main__":
    run(Octavo)
