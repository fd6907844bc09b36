"""The same workload through transformers' `generate`: static batches of 16, padded on the left."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from octavo.cli.bench.figures import repetitions, rounded
from octavo.cli.bench.workloads import Workload
from octavo.config.engine_config import ModelConfig
from octavo.errors import ConfigurationError

BATCH_SIZE = 16


class TransformersPeer:
    """Loads the same checkpoint in the same dtype; random weights where octavo's are."""

    name = "transformers"

    def __init__(self, model: ModelConfig, workload: Workload) -> None:
        try:
            transformers = import_module("transformers")
        except ImportError:
            raise ConfigurationError("--compare transformers needs transformers: pip install transformers") from None
        import_module("transformers.utils.logging").disable_progress_bar()
        self._torch = import_module("torch")
        self.workload, self.vocab_size = workload, model.vocab_size
        self.version: str = transformers.__version__
        self.seconds: list[float] = []
        self._model = _load(transformers, model, getattr(self._torch, model.dtype)).eval()

    def warm_up(self) -> None:
        self._generate([[10 + i] * 64 for i in range(min(BATCH_SIZE, len(self.workload.lengths)))], 8, 0.0)

    def repeat(self, repetition: int) -> float:
        prompts = self.workload.draw(repetition, self.vocab_size)
        lengths = self.workload.lengths
        started = time.perf_counter()
        for first in range(0, len(prompts), BATCH_SIZE):
            output = max(output for _, output in lengths[first : first + BATCH_SIZE])
            self._generate(prompts[first : first + BATCH_SIZE], output, self.workload.temperature)
        self.seconds.append(time.perf_counter() - started)
        return self.seconds[-1]

    def report(self) -> dict[str, Any]:
        """Only tokens that the workload asks for count, not what the longest of a batch makes the others do."""
        return {
            "version": self.version,
            "batch_size": BATCH_SIZE,
            **repetitions(self.seconds),
            "output_tokens_per_second": rounded(self.workload.num_output_tokens / min(self.seconds)),
        }

    def _generate(self, prompts: list[list[int]], output: int, temperature: float) -> None:
        torch = self._torch
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                min_new_tokens=output,
                max_new_tokens=output,
                pad_token_id=0,
                **(sampling or {"do_sample": False}),
            )
        assert made.shape[1] == longest + output, made.shape


def _load(transformers: Any, model: ModelConfig, dtype: Any) -> Any:
    checkpoint, kind = model.checkpoint, transformers.AutoModelForCausalLM
    if model.load_format == "dummy":
        content = {key: value for key, value in checkpoint.config.items() if key not in ("model_type", "torch_dtype")}
        config = transformers.AutoConfig.for_model(checkpoint.config["model_type"], **content)
        return kind.from_config(config, dtype=dtype)
    path = checkpoint.path
    assert path is not None
    if checkpoint.is_gguf_file:
        return kind.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
    return kind.from_pretrained(path, dtype=dtype)
