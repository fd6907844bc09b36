"""vLLM's CPU build in a process of compare_cpu.py: compiled, threads bound to the cores, what its environment says."""

from __future__ import annotations

import os
from typing import Any

from session import Job, Prompts, Work, run


class VLLM:
    def __init__(self, job: Job) -> None:
        import vllm

        self._vllm = vllm
        self.version = f"vllm {vllm.__version__}"
        options: dict[str, Any] = {
            "dtype": "bfloat16",
            "max_model_len": job.max_model_len,
            "max_num_seqs": job.max_num_seqs,
            "skip_tokenizer_init": True,
        }
        names = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD")
        self.settings = options | {name: os.environ.get(name, "") for name in names}
        self.llm = vllm.LLM(model=job.model, **options)

    def prepare(self, work: Work) -> None:
        pass

    def generate(self, prompts: Prompts, outputs: list[int], shared: int) -> list[int]:
        vllm = self._vllm
        params = [
            vllm.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
            for count in outputs
        ]
        results = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [len(result.outputs[0].token_ids) for result in results]


if __name__ == "__main__":
    run(VLLM)
