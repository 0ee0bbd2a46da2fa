"""Experts and fused layers, against PEFT: logits of the same adapter, both ways (layers.py)."""

import json

import llama_cpp
import numpy as np
import pytest
from families import TOKENS
from layers import EXPERTS, FUSED, JOINED, MODULES
from llama_logits import logits_of

from logo_local.convert import convert_adapter
from logo_local.engine import LoGo
from logo_local.files.base_model import BaseModel

PARAMETERS = ("parameters", "parameters-patterns", "only-gate-up", "only-down")
CASES = [
    *((name, adapter) for name in EXPERTS for adapter in PARAMETERS),
    *((name, adapter) for name in MODULES for adapter in ("modules", "uneven")),
    *((name, "fused") for name in FUSED),
    *((name, adapter) for name in JOINED for adapter in ("queries", "keys-values", "all")),
]


def opened(folder):
    base = BaseModel.read(folder / "base.gguf")
    llama = llama_cpp.Llama(
        str(base.path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False, type_k=0, type_v=0
    )
    return base, llama


@pytest.mark.parametrize(("name", "adapter"), CASES)
def test_logits_equal_pefts(layers, name, adapter, tmp_path):
    failures = json.loads((layers / "failures.json").read_text())
    assert name not in failures, failures[name]
    base, llama = opened(layers / name)
    assert base.architecture == name.removesuffix("-joined")
    expected = np.load(layers / name / "logits.npz")
    try:
        size = np.ptp(expected["base"])
        assert np.abs(logits_of(llama) - expected["base"]).max() < 1e-3 * size
        out = tmp_path / "adapter.gguf"
        convert_adapter(layers / name / adapter, base, out, "f32")
        found = logits_of(llama, out)
        assert np.abs(found - expected[adapter]).max() < 1e-3 * np.ptp(expected[adapter])
        assert np.abs(found - expected["base"]).max() > 0.05 * size
    finally:
        llama.close()


@pytest.mark.parametrize("mixture", ["scales", "stacked"])
@pytest.mark.parametrize("name", EXPERTS)
def test_the_runtime_answers_under_experts(layers, name, mixture, tmp_path):
    expected = np.load(layers / name / "logits.npz")
    base = BaseModel.read(layers / name / "base.gguf")
    adapters = [adapter for adapter in expected.files if adapter != "base"]
    for adapter in adapters:
        convert_adapter(layers / name / adapter, base, tmp_path / f"{adapter}.gguf", "f32")
    llm = LoGo(base.path, tmp_path, mixture=mixture, n_ctx=64, type_k=0, type_v=0, signal="norm")
    try:
        assert set(llm.pool.names) == set(adapters)
        for adapter in adapters:
            with llm.under({adapter: 1.0}):
                next(llm.generate(TOKENS, temp=0.0))
            pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
            found = np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),))
            assert np.abs(found - expected[adapter][-1]).max() < 1e-3 * np.ptp(expected[adapter])
    finally:
        llm.close()
