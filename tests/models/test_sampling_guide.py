"""docs/guides/sampling.md: its examples run as they are, with a model of ours; its table has every field."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.core.outputs import RequestOutput
from octavo.core.params import SamplingParams
from octavo.errors import InvalidRequest
from octavo.llm import LLM
from tests.tiny_model import write_tiny_model

GUIDE = (Path(__file__).parents[2] / "docs/guides/sampling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
FILES = {"my_processors": 2, "my_engine_processors": 4}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model and the files of the guide, whose engines ask for no weights."""
    write_tiny_model(tmp_path / "my-model")
    for module, block in FILES.items():
        assert BLOCKS[block].startswith(f"# {module}.py\n")
        (tmp_path / f"{module}.py").write_text(BLOCKS[block])
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    plain = LLM.__init__

    def start(self: LLM, model: str, **options: Any) -> None:
        small = {"load_format": "dummy", "kv_cache_memory_bytes": "4MiB", "threads": 1, "max_model_len": 128}
        plain(self, model, **small, **options)

    monkeypatch.setattr(LLM, "__init__", start)
    return tmp_path


def outputs_of(block: int) -> list[int]:
    names: dict[str, Any] = {}
    exec(BLOCKS[block], names)
    (output,) = names["outputs"]
    names["llm"].shutdown()
    assert isinstance(output, RequestOutput) and output.error is None
    return output.outputs[0].token_ids


def test_plain_parameters(place: Path) -> None:
    assert 0 < len(outputs_of(0)) <= 64


def test_a_callable(place: Path) -> None:
    token_ids = outputs_of(1)
    assert len(token_ids) > 1 and all(a != b for a, b in itertools.pairwise(token_ids))


def test_one_registered_by_name(place: Path) -> None:
    assert set(outputs_of(3)) <= {11, 12}


def test_one_of_the_engine(place: Path) -> None:
    target = __import__("my_engine_processors").Target
    params = [SamplingParams(extra_args={"target": 17}), SamplingParams(temperature=0.0)]
    with LLM("./my-model", logits_processors=[target]) as llm:
        first, second = llm.generate(["Once"] * 2, params, use_tqdm=False)
        assert set(first.outputs[0].token_ids) == {17} and set(second.outputs[0].token_ids) != {17}
        with pytest.raises(InvalidRequest, match="target must be a token id, got 'x'"):
            llm.generate(["Once"], SamplingParams(extra_args={"target": "x"}), use_tqdm=False)


def test_every_field_is_in_the_table() -> None:
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\|([^|]*)\|", GUIDE, re.MULTILINE))))
    assert set(SamplingParams.__struct_fields__) <= named, set(SamplingParams.__struct_fields__) - named
