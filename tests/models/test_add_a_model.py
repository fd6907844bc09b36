"""The guide's example, taken from the page and run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import transformers

from octavo.models import registry
from tests.models.harness import PagedModel, load_model, randomise, save
from tests.models.test_logits import SMALL, VOCAB

GUIDE = Path(__file__).parents[2] / "docs/guides/add-a-model.md"


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader does: saves the first block as a file on the path, runs the second."""
    file, registration = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert file.startswith("# my_olmo2.py\n")
    assert len(file.splitlines()) < 70
    (tmp_path / "my_olmo2.py").write_text(file)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_olmo2", raising=False)
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    exec(registration, {})


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("bias", [False, True])
def test_the_example_equals_transformers(tmp_path: Path, bias: bool) -> None:
    config = transformers.Olmo2Config(**SMALL, attention_bias=bias)
    model = transformers.Olmo2ForCausalLM(config).eval()
    randomise(model)
    text = torch.randint(0, VOCAB, (1, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(text).logits[0]
    assert expected.std() > 0.3
    paged = PagedModel(load_model(save(model, tmp_path / "checkpoint"), 128))
    row = paged.add(text[0].tolist())
    found = torch.cat([paged.step({row: count})[row] for count in (20, 7, 20, 1, 1, 1)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
