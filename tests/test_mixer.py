"""Mixtures as one stack: equal to the adapters one by one, within the bound, whatever happens."""

import tempfile
from dataclasses import replace

import numpy as np
import pytest
from llama_cpp import Llama
from random_gguf import EXPERTS, SMALL, write_adapter, write_base

from logo_local.errors import AdapterError, NativeError, PoolError
from logo_local.files.adapter_file import AdapterFile, read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.llama import mixture as mixture_module
from logo_local.llama.mixture import Mixer, ResidentAdapters, rank_step
from logo_local.llama.model import LoadedModel
from logo_local.llama.native import Tensor
from logo_local.llama.probe import EachProbe
from logo_local.llama.taps import WeightFinder

TOKENS = [1, *range(60, 80)]
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
# name -> how it is written: ranks, sets of modules and blocks differ, and none is a multiple of 32
ADAPTERS = {
    "all": {"rank": 3},
    "attention": {"rank": 8, "kinds": ATTENTION},
    "late": {"rank": 33, "blocks": (1, 2)},
    "down": {"rank": 5, "kinds": ("attn_v",), "blocks": (0,)},
    "whole": {"rank": 4, "embeddings": True},
}
NAMES = tuple(ADAPTERS)
WEIGHTS = [
    dict.fromkeys(NAMES, 0.2),
    {"all": 0.7, "late": 0.2, "down": 0.1},
    {"attention": 1.0},
    {"all": 3.0, "attention": -1.5, "whole": 0.01},
]


class Bench:
    """A small model with adapters, and its logits under a mixture, either way."""

    def __init__(self, folder, shape=SMALL, dtype=np.float32):
        self.base = BaseModel.read(write_base(folder / "base.gguf", shape=shape))
        # Keys and values in float16 would round small differences up.
        self.llama = Llama(str(self.base.path), n_ctx=256, verbose=False, type_k=0, type_v=0)
        self.loaded = LoadedModel(self.llama)
        self.probe = EachProbe(self.loaded)
        self.adapters = {}
        for i, (name, how) in enumerate(ADAPTERS.items()):
            given = {} if shape.experts and name == "whole" else how
            path = write_adapter(folder / f"{name}.gguf", i, shape=shape, dtype=dtype, **given)
            self.adapters[name] = read_adapter(path, self.base)
        self._mixers = []

    def mixer(self, way="stacked", memory=1 << 30, **how):
        residents = ResidentAdapters(self.llama.model, memory)
        mixer = Mixer(self.loaded, self.probe.ctx, residents, way=way, **how)
        self._mixers.append((mixer, residents))
        return mixer

    def logits(self, mixer, weights):
        self.way = mixer.set([(self.adapters[name], w) for name, w in weights.items()])
        return self.probe.logits(TOKENS)

    def close_mixers(self):
        while self._mixers:
            mixer, residents = self._mixers.pop()
            mixer.close()
            residents.close()


def bench_in(folder, **how):
    bench = Bench(folder, **how)
    yield bench
    bench.close_mixers()
    bench.probe.close()
    bench.llama.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    yield from bench_in(tmp_path_factory.mktemp("mixer"))


@pytest.fixture(scope="module")
def in_float16(tmp_path_factory):
    yield from bench_in(tmp_path_factory.mktemp("mixer16"), dtype=np.float16)


@pytest.fixture
def bench(shared):
    yield shared
    shared.close_mixers()


def off_by(one, other):
    """The largest difference, as a share of the logits' range."""
    return np.abs(one - other).max() / np.ptp(other)


@pytest.fixture(autouse=True)
def step(monkeypatch):
    """Ranks are padded to 32 on every machine; returns a function that changes this."""

    def pad_to(n):
        monkeypatch.setattr("logo_local.llama.mixture.rank_step", lambda: n)

    pad_to(32)
    return pad_to


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (b"AVX2 = 1 | AVX512 = 1 | ", 64),
        (b"AVX2 = 1 | AVX512_VNNI = 1 | ", 32),
        (b"NEON = 1 | ", 32),
    ],
)
def test_the_step_is_that_of_the_cpu(monkeypatch, features, expected):
    monkeypatch.setattr("llama_cpp.llama_print_system_info", lambda: features)
    rank_step.cache_clear()
    try:
        assert rank_step() == expected
    finally:
        rank_step.cache_clear()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("padded", [32, 64])
def test_a_stack_equals_the_adapters_one_by_one(bench, weights, step, padded):
    step(padded)
    expected = bench.logits(bench.mixer("scales"), weights)
    base = bench.logits(bench.mixer("scales"), {})
    assert bench.way == "none"
    assert off_by(bench.logits(bench.mixer("stacked"), weights), expected) < 1e-5
    assert bench.way == "stacked"
    assert off_by(base, expected) > 0.01


def test_experts_are_stacked_too(tmp_path):
    for bench in bench_in(tmp_path, shape=EXPERTS):
        expected = bench.logits(bench.mixer("scales"), WEIGHTS[0])
        assert off_by(bench.logits(bench.mixer("stacked"), WEIGHTS[0]), expected) < 1e-5


@pytest.mark.parametrize("weights", WEIGHTS)
def test_float16_is_as_near_to_the_truth_one_way_as_the_other(bench, in_float16, weights):
    # llama.cpp rounds activations to float16 either way, so neither is exact to the last bits.
    by_scales = in_float16.logits(in_float16.mixer("scales"), weights)
    stacked = in_float16.logits(in_float16.mixer("stacked"), weights)
    truth = bench.logits(bench.mixer("scales"), weights)
    in_float16.close_mixers()
    assert off_by(stacked, truth) < 2 * off_by(by_scales, truth) + 1e-4
    assert off_by(stacked, by_scales) < 0.02


def test_one_mixture_after_another_leaves_nothing_behind(bench):
    mixer, scales = bench.mixer("stacked"), bench.mixer("scales")
    order = [0, 1, 0, 3, 2, 2, 1, 0]
    for weights in [WEIGHTS[i] for i in order]:
        found = bench.logits(mixer, weights)
        mixer.set([])
        expected = bench.logits(scales, weights)
        scales.set([])
        assert off_by(found, expected) < 1e-5


def test_other_weights_of_the_same_adapters_leave_the_larger_part_as_it_is(bench, monkeypatch):
    mixer = bench.mixer("stacked")
    bench.logits(mixer, {"all": 0.5, "late": 0.5})
    read = []
    stored = AdapterFile.stored

    def noted(self, file, target, side):
        read.append((target.split(".")[2], side))
        return stored(self, file, target, side)

    monkeypatch.setattr(AdapterFile, "stored", noted)
    again = bench.logits(mixer, {"late": 0.9, "all": 0.1})
    assert set(read) == {
        *(("attn_q", "a"), ("attn_k", "b"), ("attn_v", "b"), ("attn_output", "a")),
        *(("ffn_gate", "a"), ("ffn_up", "a"), ("ffn_down", "b")),
    }
    mixer.set([])
    expected = bench.logits(bench.mixer("scales"), {"late": 0.9, "all": 0.1})
    assert off_by(again, expected) < 1e-5


def test_an_unchanged_mixture_reads_no_file(bench, monkeypatch):
    mixer = bench.mixer("stacked")
    first = bench.logits(mixer, {"all": 0.5, "late": 0.5})
    monkeypatch.setattr(
        "logo_local.files.adapter_file.AdapterFile.stored", lambda *_: pytest.fail("it was read")
    )
    np.testing.assert_array_equal(bench.logits(mixer, {"late": 0.5, "all": 0.5}), first)


def test_memory_that_only_llama_cpp_reaches_is_written_through_it(bench, monkeypatch):
    expected = bench.logits(bench.mixer("stacked"), WEIGHTS[0])
    bench.close_mixers()
    monkeypatch.setattr(Tensor, "memory", lambda _self: None)
    np.testing.assert_array_equal(bench.logits(bench.mixer("stacked"), WEIGHTS[0]), expected)


def test_tensors_that_are_only_copied_to_another_device_are_not_written(bench, monkeypatch):
    """As at the boundary of the layers on a GPU, if marking the buffers did not help."""
    target = "blk.1.ffn_down.weight.lora_a"
    decoded = []
    look = WeightFinder._look

    def look_at_copies(self, node, *, ask):
        if node.source(0) is not None and node.source(0).name == target:
            self.copied.add(target)
            return not ask
        return look(self, node, ask=ask)

    monkeypatch.setattr(WeightFinder, "_look", look_at_copies)
    monkeypatch.setattr(Tensor, "mark_as_weight", lambda self: decoded.append(self.name))
    with pytest.raises(NativeError, match="not found"):
        bench.logits(bench.mixer("stacked"), WEIGHTS[0])
    assert decoded.count("blk.1.ffn_up.weight.lora_a") == 2  # looked for again
    assert target not in decoded
    bench.logits(bench.mixer("auto"), WEIGHTS[0])
    assert bench.way == "scales"


def test_where_threads_cannot_share_files_one_does_the_work(bench, monkeypatch):
    expected = bench.logits(bench.mixer("stacked"), WEIGHTS[0])
    bench.close_mixers()
    for module in ("files.stored_values", "llama.stack_buffer"):
        monkeypatch.setattr(f"logo_local.{module}.CAN_SHARE_FILES", False)
    np.testing.assert_array_equal(bench.logits(bench.mixer("stacked"), WEIGHTS[0]), expected)


def test_q8_0_is_near(bench):
    expected = bench.logits(bench.mixer("scales"), WEIGHTS[1])
    mixer = bench.mixer("stacked", stored_as="q8_0")
    rounded = bench.logits(mixer, WEIGHTS[1])
    assert 1e-6 < off_by(rounded, expected) < 0.1
    # The last weights are there, not the first.
    bench.logits(mixer, {"all": 1.0})
    np.testing.assert_array_equal(bench.logits(mixer, WEIGHTS[1]), rounded)


def test_rows_that_do_not_fill_the_blocks_of_q8_0_are_stored_exactly(tmp_path, caplog):
    for bench in bench_in(tmp_path, shape=replace(SMALL, ffn=80)):
        expected = bench.logits(bench.mixer("scales"), WEIGHTS[1])
        mixer = bench.mixer("stacked", stored_as="q8_0")
        assert off_by(bench.logits(mixer, WEIGHTS[1]), expected) < 1e-5
        bench.logits(mixer, WEIGHTS[0])
        assert caplog.text.count("is stored exactly") == 1


def test_auto_is_fused_where_the_stack_is_within_the_bound(bench):
    mixture = {"all": 0.5, "attention": 0.5}
    size = sum(bench.adapters[name].n_bytes for name in mixture)
    assert bench.mixer("auto").way_of([bench.adapters["all"]]) == "stacked"
    small = bench.mixer("auto", memory=size)  # ranks filled up to 32 take more
    bench.logits(small, mixture)
    assert bench.way == "scales"
    with pytest.raises(PoolError, match="are allowed") as caught:
        bench.logits(bench.mixer("stacked", memory=size), mixture)
    assert "--adapter-memory" in caught.value.hint


def test_the_bound_holds_for_stacks_and_adapters_together(bench):
    mixer = bench.mixer("stacked")
    residents = mixer._residents
    bench.logits(mixer, {"all": 1.0})
    one = residents.size()
    assert one > 0
    bench.logits(mixer, WEIGHTS[1])
    assert residents.size() > one  # both are there
    residents.memory = residents.size() - 1
    bench.logits(mixer, {"late": 0.5, "whole": 0.5})
    assert one < residents.size() <= residents.memory
    mixer.set([])
    mixer.close()
    assert residents.size() == 0


def test_a_smaller_mixture_uses_the_same_stack_while_little_is_wasted(bench):
    mixer = bench.mixer("stacked")
    bench.logits(mixer, {"all": 0.5, "whole": 0.5})
    before = mixer._residents.size()
    for weights in ({"whole": 1.0}, {"all": 1.0}):
        found = bench.logits(mixer, weights)
        assert mixer._residents.size() == before
        mixer.set([])
        expected = bench.logits(bench.mixer("scales"), weights)
        assert off_by(found, expected) < 1e-5


@pytest.mark.parametrize("change", ["rewritten", "gone", "cut"])
def test_a_file_that_has_changed_is_refused_and_the_next_mixture_is_right(bench, tmp_path, change):
    path = write_adapter(tmp_path / "x.gguf", 9)
    bench.adapters["x"] = read_adapter(path, bench.base)
    mixer = bench.mixer("stacked")
    before = bench.logits(mixer, {"all": 1.0})
    if change == "gone":
        path.unlink()
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        write_adapter(path, 10)
    with pytest.raises(AdapterError, match="x"):
        bench.logits(mixer, {"all": 0.5, "x": 0.5})
    base = bench.probe.logits(TOKENS)
    np.testing.assert_array_equal(bench.logits(mixer, {}), base)
    np.testing.assert_array_equal(bench.logits(mixer, {"all": 1.0}), before)
    del bench.adapters["x"]


def test_where_llama_cpp_is_another_adapters_are_set_one_by_one(bench, monkeypatch, caplog):
    expected = bench.logits(bench.mixer("scales"), WEIGHTS[1])
    bench.close_mixers()

    def refuse(*_):
        raise NativeError("no such tensors", hint="use --mixture scales")

    monkeypatch.setattr(mixture_module, "StackBuffer", refuse)
    mixer = bench.mixer("auto")
    np.testing.assert_array_equal(bench.logits(mixer, WEIGHTS[1]), expected)
    assert bench.way == "scales"
    assert "one by one, which is slower: no such tensors" in caplog.text
    caplog.clear()
    bench.logits(mixer, WEIGHTS[0])
    assert not caplog.text  # said once
    with pytest.raises(NativeError):
        bench.logits(bench.mixer("stacked"), WEIGHTS[0])


def test_without_room_for_a_file_adapters_are_set_one_by_one(bench, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    expected = bench.logits(bench.mixer("scales"), WEIGHTS[1])
    bench.close_mixers()
    np.testing.assert_array_equal(bench.logits(bench.mixer("auto"), WEIGHTS[1]), expected)
    assert bench.way == "scales"
    assert "no file can be made in" in caplog.text
    with pytest.raises(NativeError) as caught:
        bench.logits(bench.mixer("stacked"), WEIGHTS[1])
    assert "TMPDIR" in caught.value.hint
