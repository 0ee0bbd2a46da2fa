"""Every architecture that the converter knows, against PEFT: logits of the same adapter, both ways.

One tiny model for each (families.py); the adapters are on every linear layer, one of them with
ranks and alphas that differ by layer.
"""

import ctypes
import json

import llama_cpp
import numpy as np
import pytest
from families import FAMILIES, TOKENS
from wrapped import WRAPPED

from logo_local.base_model import BaseModel
from logo_local.convert import convert_adapter
from logo_local.convert.layouts import LAYOUTS
from logo_local.errors import ConversionError
from logo_local.mixture import set_adapters
from logo_local.native import load_adapter

# Why some of the converter's architectures are not proved here.
UNPROVED = {
    "exaone": "transformers has no such model: its code is on a hub",
}


def test_every_architecture_is_proved_or_says_why_not():
    wrapped = {architecture for architecture, _, _ in WRAPPED.values()}
    assert set(LAYOUTS) == set(FAMILIES) | wrapped | set(UNPROVED)


def logits_of(llama, path=None):
    """The logits (n_tokens, n_vocab) behind each of TOKENS, under the adapter in `path`."""
    handle = None if path is None else load_adapter(llama.model, path)
    set_adapters(llama.ctx, [handle] if handle else [], [1.0] if handle else [])
    rows = []
    for i in range(len(TOKENS)):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
        tokens = (llama_cpp.llama_token * (i + 1))(*TOKENS[: i + 1])
        assert llama_cpp.llama_decode(llama.ctx, llama_cpp.llama_batch_get_one(tokens, i + 1)) == 0
        pointer = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        pointer = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        rows.append(np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)).copy())
    set_adapters(llama.ctx, [], [])
    if handle:
        llama_cpp.llama_adapter_lora_free(handle)
    return np.stack(rows)


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
    ending = "but the GGUF base holds the text part only"
    assert 1 <= len(caught.value.problems) <= 2  # the tower, and what hands its pictures on
    assert all(problem.endswith(ending) for problem in caught.value.problems)
    assert "target_modules" in caught.value.hint
