"""Every architecture that the converter knows, against PEFT: logits of the same adapter, both ways.

One tiny model for each (families.py); the adapters are on every linear layer, one of them with
ranks and alphas that differ by layer.
"""

import json

import llama_cpp
import numpy as np
import pytest
from families import FAMILIES
from layers import FUSED
from llama_logits import logits_of

from logo_local.base_model import BaseModel
from logo_local.convert import convert_adapter
from logo_local.convert.layouts import LAYOUTS

# Why some of the converter's architectures are not proved here.
UNPROVED = {
    "exaone": "transformers has no such model: its code is on a hub",
    "mistral3": "the text part of a model for pictures; its layers are those of llama",
}


def test_every_architecture_is_proved_or_says_why_not():
    assert set(LAYOUTS) == set(FAMILIES) | set(FUSED) | set(UNPROVED)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_pefts(families, name, tmp_path):
    failures = json.loads((families / "failures.json").read_text())
    assert name not in failures, failures[name]
    folder = families / name
    base = BaseModel.read(folder / "base.gguf")
    assert base.architecture == name
    expected = np.load(folder / "logits.npz")
    llama = llama_cpp.Llama(
        str(base.path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False, type_k=0, type_v=0
    )
    try:
        size = np.ptp(expected["base"])
        assert np.abs(logits_of(llama) - expected["base"]).max() < 1e-3 * size
        for adapter in ("plain", "patterns"):
            out = tmp_path / f"{adapter}.gguf"
            conversion = convert_adapter(folder / adapter, base, out, "f32")
            assert conversion.rows
            found = logits_of(llama, out)
            assert np.abs(found - expected[adapter]).max() < 1e-3 * np.ptp(expected[adapter])
            assert np.abs(found - expected["base"]).max() > 0.05 * size
    finally:
        llama.close()
