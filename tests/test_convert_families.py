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
from wrapped import WRAPPED

from logo_local.convert import convert_adapter
from logo_local.convert.layouts import LAYOUTS
from logo_local.errors import ConversionError
from logo_local.files.base_model import BaseModel

# Why some of the converter's architectures are not proved here.
UNPROVED = {
    "exaone": "transformers has no such model: its code is on a hub",
}


def test_every_architecture_is_proved_or_says_why_not():
    wrapped = {architecture for architecture, _, _ in WRAPPED.values()}
    assert set(LAYOUTS) == set(FAMILIES) | set(FUSED) | wrapped | set(UNPROVED)


def check_logits(folder, architecture, tmp_path):
    """That both adapters of a tiny model do under llama.cpp what they do under PEFT."""
    base = BaseModel.read(folder / "base.gguf")
    assert base.architecture == architecture
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


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_pefts(families, name, tmp_path):
    failures = json.loads((families / "failures.json").read_text())
    assert name not in failures, failures[name]
    check_logits(families / name, name, tmp_path)


@pytest.mark.parametrize("name", WRAPPED)
def test_logits_of_a_text_part_equal_pefts(wrapped, name, tmp_path):
    failures = json.loads((wrapped / "failures.json").read_text())
    assert name not in failures, failures[name]
    check_logits(wrapped / name, WRAPPED[name][0], tmp_path)


@pytest.mark.parametrize("name", WRAPPED)
def test_an_adapter_of_everything_is_refused_by_the_names_of_what_is_no_text(
    wrapped, name, tmp_path
):
    base = BaseModel.read(wrapped / name / "base.gguf")
    with pytest.raises(ConversionError) as caught:
        convert_adapter(wrapped / name / "everything", base, tmp_path / "x.gguf")
    (problem,) = caught.value.problems  # of the tower, and of what hands its pictures on
    assert problem.endswith("but the GGUF base holds the text part only")
    assert "--text-part" in caught.value.hint
