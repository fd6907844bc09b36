"""transformers' `generate` in a process of compare_cpu.py: static batches, prompts of about one length together, padded
on the left."""

from __future__ import annotations

from typing import Any

from session import Job, Prompts, Work, run

BATCH_SIZE = 16


class Transformers:
    def __init__(self, job: Job) -> None:
        import torch
        import transformers

        torch.set_num_threads(job.threads)
        self._torch = torch
        self.version = f"transformers {transformers.__version__}"
        self.settings: dict[str, Any] = {"torch": torch.__version__, "dtype": "bfloat16", "batch_size": BATCH_SIZE}
        self._config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16).eval()

    def prepare(self, work: Work) -> None:
        pass

    def generate(self, prompts: Prompts, outputs: list[int], shared: int) -> list[int]:
        counts = [0] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for first in range(0, len(order), BATCH_SIZE):
            members = order[first : first + BATCH_SIZE]
            longest = max(outputs[index] for index in members)
            made = self._generate([prompts[index] for index in members], longest)
            for index in members:
                counts[index] = min(made, outputs[index])
        return counts

    def _generate(self, prompts: Prompts, output: int) -> int:
        torch = self._torch
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=output,
                max_new_tokens=output,
                generation_config=self._config,
            )
        return int(made.shape[1]) - longest


if __name__ == "__main__":
    run(Transformers)
