"""Averaged parameters, against the arithmetic on whole matrices."""

import numpy as np
import pytest

from logo_local.completions import Sampling
from logo_local.engine import LoGo
from logo_local.evaluation.fusion import Fusion, fused_factors, write_fused
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel

WEIGHTS = {"ad0": 0.5, "ad2": 0.3, "ad4": 0.2}


@pytest.fixture(scope="module")
def base(random_base):
    return BaseModel.read(random_base)


@pytest.fixture(scope="module")
def adapters(random_adapters, base):
    return {path.stem: read_adapter(path, base) for path in sorted(random_adapters.iterdir())}


def padded(factors, rank):
    a, b = factors
    return np.pad(a, [(0, rank - len(a)), (0, 0)]), np.pad(b, [(0, 0), (0, rank - b.shape[1])])


def test_each_factor_is_the_weighted_sum(adapters):
    target = next(iter(adapters["ad0"].modules))
    a, b = fused_factors(adapters, WEIGHTS, target)
    rank = adapters["ad4"].modules[target].rank
    parts = {name: padded(adapters[name].factors(target), rank) for name in WEIGHTS}
    np.testing.assert_allclose(a, sum(w * parts[n][0] for n, w in WEIGHTS.items()), rtol=1e-5)
    scaled = {n: w * adapters[n].scaling(target) for n, w in WEIGHTS.items()}
    np.testing.assert_allclose(b, sum(s * parts[n][1] for n, s in scaled.items()), rtol=1e-5)


def test_of_one_adapter_the_average_is_that_adapter(adapters):
    target = next(iter(adapters["ad1"].modules))
    a, b = fused_factors(adapters, {"ad1": 1.0}, target)
    one_a, one_b = adapters["ad1"].factors(target)
    np.testing.assert_allclose(b @ a, adapters["ad1"].scaling(target) * one_b @ one_a, rtol=1e-5)


def test_an_unknown_target_is_a_key_error(adapters):
    with pytest.raises(KeyError):
        fused_factors(adapters, WEIGHTS, "blk.99.attn_q.weight")


def test_the_file_is_an_adapter_for_the_same_base(adapters, base, tmp_path):
    write_fused(tmp_path / "mean.gguf", base.architecture, adapters, WEIGHTS)
    fused = read_adapter(tmp_path / "mean.gguf", base)
    assert set(fused.modules) == {t for name in WEIGHTS for t in adapters[name].modules}
    for target in fused.modules:
        assert fused.scaling(target) == 1.0
        for written, made in zip(
            fused.factors(target), fused_factors(adapters, WEIGHTS, target), strict=True
        ):
            np.testing.assert_array_equal(written, made)


def test_answers_under_one_adapters_average_are_that_adapters(random_base, random_adapters):
    opened = []

    def open_engine(folder):
        opened.append(LoGo(random_base, adapters=folder, n_ctx=256))
        return opened[-1]

    sampling = Sampling(8, 0.0)
    with LoGo(random_base, adapters=random_adapters, n_ctx=256) as llm:
        with Fusion(llm.pool.adapters, llm.base.architecture, open_engine) as fusion:
            for name in ("ad3", "ad1", "ad3"):
                with llm.under({name: 1.0}):
                    expected = llm("hello", max_tokens=8, temperature=0.0)["choices"][0]["text"]
                assert fusion.answer("hello", {name: 1.0}, sampling) == expected
            folder = opened[0].pool.folder
            assert len(list(folder.iterdir())) == 1
        assert not folder.exists()
    assert len(opened) == 1


def test_a_failure_to_open_leaves_no_folder_behind(adapters, base):
    seen = []

    def fail(folder):
        seen.append(folder)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Fusion(adapters, base.architecture, fail)
    assert not seen[0].exists()
