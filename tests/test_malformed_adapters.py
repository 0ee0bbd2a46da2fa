"""Damaged, hostile and mistaken adapters: each ends in a clear message, quickly, never in a crash.

`CASES` is the table. A case writes one thing at a path ending in .gguf (or makes a folder there)
and names the words that the message must hold. Some of these files end the process when given to
llama.cpp, so none of them is.
"""

import os
import pickle
import re
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf_bytes as g
import numpy as np
import pytest
from random_gguf import write_adapter, write_base

from logo_local.convert import FOR_POOL
from logo_local.errors import AdapterError, PoolError
from logo_local.files.adapter_file import largest_change, read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.files.pool import Pool

BASE = g.base_model()
QA, QB = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"
Write = Callable[[Path], object]


def spoiled(spoil: Callable[[g.Gguf], object]) -> Write:
    """A sound adapter with one thing changed."""

    def write(path: Path) -> None:
        file = g.adapter()
        spoil(file)
        path.write_bytes(file.pack())

    return write


def cut(part: str, inside: bool = True) -> Write:
    """A sound adapter that ends within this part of the file, or right before it."""

    def write(path: Path) -> None:
        parts = g.adapter().parts()
        names = list(parts)
        before = b"".join(parts[name] for name in names[: names.index(part)])
        assert parts[part]
        path.write_bytes(before + parts[part][: len(parts[part]) // 2 if inside else 0])

    return write


def raw(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def key(name: str, kind: int, value: object) -> Write:
    return spoiled(lambda file: file.set(name, kind, value))


def tensor(name: str, /, **changes: object) -> Write:
    return spoiled(lambda file: [setattr(file.tensor(name), *item) for item in changes.items()])


def values(dtype: str, kind: int, position: int, value: float) -> Write:
    """lora_a of attn_q in another float type, with one value replaced."""

    def spoil(file: g.Gguf) -> None:
        numbers = np.ones(4 * g.D, dtype)
        numbers[position] = value
        one = file.tensor(QA)
        one.kind, one.data = kind, numbers.tobytes()

    return spoiled(spoil)


def q8_block_scale(value: float) -> Write:
    def spoil(file: g.Gguf) -> None:
        block = struct.pack("<e", 0.5) + bytes(32)
        bad = struct.pack("<e", value) + bytes([1] * 32)
        one = file.tensor(QA)
        one.kind, one.data = g.T_Q8_0, block * 7 + bad

    return spoiled(spoil)


def bf16_nan(file: g.Gguf) -> None:
    one = file.tensor(QA)
    one.kind, one.data = g.T_BF16, b"\x80\x3f" * (4 * g.D - 1) + b"\xc0\x7f"


def replace_pair(target: str, a: tuple[int, ...], b: tuple[int, ...]) -> Write:
    """Another pair of zeros instead of attn_q's, with these numpy shapes."""

    def spoil(file: g.Gguf) -> None:
        file.tensors = g.pair(target, np.zeros(a, "f"), np.zeros(b, "f")) + file.tensors[2:]

    return spoiled(spoil)


def swap_names(file: g.Gguf) -> None:
    a, b = file.tensors[:2]
    a.name, b.name = b.name, a.name


def nested_arrays(depth: int) -> bytes:
    return struct.pack("<IQ", g.ARRAY, 1) * depth + struct.pack("<IQ", g.U8, 0)


def pytorch_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))


def peft_with_pickle_only(path: Path) -> None:
    path.mkdir()
    (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}')
    (path / "adapter_model.bin").write_bytes(pickle.dumps({}))


def folder_with_stray_weights(path: Path) -> None:
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(b"")


def model_file(path: Path) -> None:
    vocabulary = struct.pack("<IQ", g.STRING, 200_000) + g.text("word") * 200_000
    file = g.adapter().without("adapter.type").set("general.type", g.STRING, "model")
    path.write_bytes(file.set("tokenizer.ggml.tokens", g.ARRAY, vocabulary).pack())


# id: (what to write, words of the message)
CASES: dict[str, tuple[Write, str]] = {
    # what is no GGUF file at all
    "an empty file": (raw(b""), "empty"),
    "a text file": (raw(b"This is my adapter\n" * 100), "not a GGUF file"),
    "one byte": (raw(b"G"), "cut short"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "pickle"),
    "a PyTorch zip": (pytorch_zip, "PyTorch"),
    "a folder called x.gguf": (lambda p: p.mkdir(), "folder"),
    "a fifo": (lambda p: os.mkfifo(p), "regular file"),
    "a link to itself": (lambda p: p.symlink_to(p), "link|symbolic"),
    "a dangling link": (lambda p: p.symlink_to("nowhere.gguf"), "not there|No such file"),
    "a model instead of an adapter": (model_file, "a model, not an adapter"),
    # the header
    "wrong magic": (spoiled(lambda f: setattr(f, "magic", b"GGML")), "not a GGUF file"),
    "big-endian magic": (spoiled(lambda f: setattr(f, "magic", b"FUGG")), "big-endian"),
    "big-endian version": (spoiled(lambda f: setattr(f, "version", 3 << 24)), "big-endian"),
    "version 1": (spoiled(lambda f: setattr(f, "version", 1)), "version 1 is not supported"),
    "version 4": (spoiled(lambda f: setattr(f, "version", 4)), "version 4 is not supported"),
    "2**61 tensors": (spoiled(lambda f: setattr(f, "n_tensors", 2**61)), "announces.*tensors"),
    "2**64 - 1 keys": (spoiled(lambda f: setattr(f, "n_keys", 2**64 - 1)), "announces.*keys"),
    "a few tensors too many": (spoiled(lambda f: setattr(f, "n_tensors", 20)), "damaged"),
    "a few keys too many": (spoiled(lambda f: setattr(f, "n_keys", 9)), "damaged"),
    "a few keys too few": (spoiled(lambda f: setattr(f, "n_keys", 2)), "damaged"),
    # cut at or within each part
    "cut in the magic": (cut("magic"), "cut short"),
    "cut before the version": (cut("version", inside=False), "cut short"),
    "cut in the counts": (cut("key count"), "cut short"),
    "cut after the counts": (cut("key 0 name", inside=False), "cut short"),
    "cut in a key's name": (cut("key 3 name"), "cut short"),
    "cut before a key's type": (cut("key 3 type", inside=False), "cut short"),
    "cut in a value": (cut("key 3 value"), "cut short"),
    "cut in a string": (cut("key 4 value"), "cut short"),
    "cut before the tensor infos": (cut("tensor 0 name", inside=False), "cut short"),
    "cut in a tensor's name": (cut("tensor 3 name"), "cut short"),
    "cut in a tensor's dimensions": (cut("tensor 3 dims"), "cut short"),
    "cut before a tensor's type": (cut("tensor 3 type", inside=False), "cut short"),
    "cut in a tensor's offset": (cut("tensor 3 offset"), "cut short"),
    "cut before the padding": (cut("padding", inside=False), "cut short"),
    "cut in the padding": (cut("padding"), "cut short"),
    "cut before the data": (cut("tensor 0 data", inside=False), "cut short"),
    "cut in the data": (cut("tensor 3 data"), "cut short"),
    "cut in the last data": (cut("tensor 7 data"), "cut short"),
    # keys
    "a key of 2**60 bytes": (
        spoiled(lambda f: f.keys.insert(0, ("x", g.ARRAY, struct.pack("<IQ", g.STRING, 2**60)))),
        "damaged",
    ),
    "a string of 2**62 bytes": (key("x", g.STRING + 100, b""), "damaged"),
    "a huge string length": (
        lambda p: p.write_bytes(g.adapter().pack().replace(g.text("lora"), b"\xff" * 12, 1)),
        "cut short or damaged",
    ),
    "an array of 2**60 bytes at the end": (
        lambda p: p.write_bytes(
            g.Gguf(keys=[("x", g.ARRAY, struct.pack("<IQ", g.U8, 2**60))]).pack()
        ),
        "array of 1,152,921,504,606,846,976 values",
    ),
    "a thousand arrays of a thousand values": (
        spoiled(
            lambda f: f.keys.extend(
                (f"x{i}", g.ARRAY, struct.pack("<IQ", g.U8, 1000) + bytes(1000))
                for i in range(1000)
            )
        ),
        "array of 1,000 values|far more than any adapter's",
    ),
    "an array of a million values": (
        key("x", g.ARRAY, struct.pack("<IQ", g.U8, 10**6) + bytes(10**6)),
        "array of 1,000,000 values",
    ),
    "arrays in arrays": (key("x", g.ARRAY, nested_arrays(1)), "array of things"),
    "3,000 arrays in arrays": (key("x", g.ARRAY, nested_arrays(3000)), "arrays in arrays"),
    "an unknown value type": (key("x", 13, b"\0\0\0\0"), "13"),
    "an unknown element type": (key("x", g.ARRAY, struct.pack("<IQ", 77, 0)), "array of things"),
    "a key twice": (spoiled(lambda f: f.keys.append(f.keys[3])), "Duplicate adapter.lora.alpha"),
    "a key without a name": (key("", g.U8, 1), "without a name"),
    "a key that is no text": (
        lambda p: p.write_bytes(g.adapter().pack().replace(b"general.name", b"general.na\xff\xfe")),
        "utf-8",
    ),
    "alignment 0": (key("general.alignment", g.U32, 0), "alignment"),
    "alignment 24": (key("general.alignment", g.U32, 24), "alignment"),
    "alignment 2**31": (key("general.alignment", g.U32, 2**31), "damaged"),
    "alignment as text": (key("general.alignment", g.STRING, "32"), "alignment"),
    "no general.type": (spoiled(lambda f: f.without("general.type")), "no key general.type"),
    "general.type as a number": (key("general.type", g.U32, 1), "general.type must be a string"),
    "another general.type": (key("general.type", g.STRING, "imatrix"), "'imatrix'.*'adapter'"),
    "general.type with a zero byte": (key("general.type", g.STRING, "adapter\0"), "general.type"),
    "another architecture": (
        key("general.architecture", g.STRING, "gemma2"),
        "general.architecture is 'gemma2', not 'llama'",
    ),
    "architecture as an array": (
        key("general.architecture", g.ARRAY, (g.STRING, ["llama"])),
        "general.architecture must be a string, not array of string",
    ),
    "no adapter.type": (spoiled(lambda f: f.without("adapter.type")), "no key adapter.type"),
    "another adapter.type": (key("adapter.type", g.STRING, "dora"), "adapter.type is 'dora'"),
    "adapter.type as a bool": (key("adapter.type", g.BOOL, True), "must be a string, not bool"),
    "alpha as text": (key("adapter.lora.alpha", g.STRING, "16"), "alpha must be a 32-bit float"),
    "alpha as uint32": (key("adapter.lora.alpha", g.U32, 16), "alpha must be.*not uint32"),
    "alpha as float64": (key("adapter.lora.alpha", g.F64, 16.0), "alpha must be.*not float64"),
    "alpha NaN": (key("adapter.lora.alpha", g.F32, float("nan")), "alpha is nan"),
    "alpha infinite": (key("adapter.lora.alpha", g.F32, float("-inf")), "alpha is -inf"),
    "an aLoRA": (
        key("adapter.alora.invocation_tokens", g.ARRAY, (g.U32, [1, 2])),
        "activated LoRA",
    ),
    # tensor infos
    "2**32 - 1 dimensions": (tensor(QA, n_dims=2**32 - 1), "damaged"),
    "5 dimensions": (tensor(QA, dims=(g.D, 4, 1, 1, 1)), "impossible dimensions"),
    "dimensions whose product wraps to 0": (tensor(QA, dims=(2**32, 2**32)), "impossible"),
    "dimensions whose product wraps to the right one": (
        tensor(QA, dims=(2**62 + 64, 4)),
        "impossible dimensions",
    ),
    "a negative dimension": (tensor(QA, dims=(2**64 - 64, 0)), "impossible dimensions"),
    "a tensor of 2**62 bytes": (tensor(QA, dims=(2**30, 2**30)), "cut short or damaged"),
    "an unknown tensor type": (tensor(QA, kind=99), "unknown tensor type 99"),
    "integers": (tensor(QA, kind=g.T_I32), "type I32"),
    "a row that is no whole block": (
        spoiled(lambda f: setattr(f.tensor(QB), "kind", g.T_Q8_0)),
        "no multiple of the block",
    ),
    "an offset beyond the file": (tensor(QA, offset=2**40), "cut short or damaged"),
    "an offset that wraps": (tensor(QA, offset=2**64 - 32), "cut short or damaged"),
    "a misaligned offset": (tensor(QB, offset=1025), "misaligned"),
    "overlapping data": (tensor(QB, offset=0), "overlaps"),
    "a tensor twice": (tensor(QB, name=QA), f"two tensors with the name {QA}"),
    "a name that is no text": (tensor(QA, name=b"blk.0.\xff.lora_a"), "utf-8"),
    "a name of 300 characters": (tensor(QA, name="x" * 300), "too long"),
    # what the tensors are
    "no tensors": (spoiled(lambda f: f.tensors.clear()), "no LoRA tensors"),
    "lora_a without lora_b": (spoiled(lambda f: f.tensors.pop()), "has lora_a but no lora_b"),
    "lora_b without lora_a": (
        spoiled(lambda f: f.tensors.pop(6)),
        "blk.1.attn_v.weight has lora_b but no lora_a",
    ),
    "an unexpected suffix": (tensor(QA, name="blk.0.attn_q.weight.lora_c"), "neither"),
    "PEFT's names": (tensor(QA, name="model.layers.0.q_proj.lora_A.weight"), "neither"),
    "a norm that llama.cpp would ignore": (
        spoiled(lambda f: f.tensors.append(g.f32("blk.0.attn_norm.weight", np.ones(g.D, "f")))),
        "whole norm weight",
    ),
    "a weight that the base lacks": (
        replace_pair("blk.7.attn_q.weight", (4, g.D), (g.D, 4)),
        "the base has no weight blk.7.attn_q.weight",
    ),
    "lora_a for a wider base": (
        replace_pair("blk.0.attn_q.weight", (4, 128), (g.D, 4)),
        r"lora_a is \(4, 128\)",
    ),
    "lora_b for a wider base": (
        replace_pair("blk.0.attn_q.weight", (4, g.D), (128, 4)),
        r"lora_b \(128, 4\)",
    ),
    "lora_a and lora_b exchanged": (spoiled(swap_names), "where the base needs"),
    "ranks that differ": (
        replace_pair("blk.0.attn_q.weight", (4, g.D), (g.D, 5)),
        "lora_a has rank 4, lora_b rank 5",
    ),
    "rank 0": (replace_pair("blk.0.attn_q.weight", (0, g.D), (g.D, 0)), "rank 0"),
    "a pair for a norm": (
        replace_pair("blk.0.attn_norm.weight", (1, g.D), (1, 1)),
        "no matrix that llama.cpp adapts",
    ),
    "a flat pair for a stack of experts": (
        replace_pair("blk.0.ffn_up_exps.weight", (4, g.D), (g.D_FF, 4)),
        r"the base needs \(4, rank, 64\)",
    ),
    "too few experts": (
        replace_pair("blk.0.ffn_up_exps.weight", (3, 2, g.D), (3, g.D_FF, 2)),
        r"lora_a is \(3, 2, 64\)",
    ),
    "an embedding pair the usual way round": (
        replace_pair("token_embd.weight", (4, g.D), (g.N_VOCAB, 4)),
        r"the base needs \(50, rank\) and \(64, rank\)",
    ),
    # values
    "NaN in f32": (values("<f4", g.T_F32, 100, np.nan), "1 values that are NaN"),
    "infinity in f16": (values("<f2", g.T_F16, 255, -np.inf), "1 values that are NaN or inf"),
    "NaN in f16": (values("<f2", g.T_F16, 0, np.nan), "1 values that are NaN or inf"),
    "a signalling NaN in f16": (
        spoiled(
            lambda f: [
                setattr(f.tensor(QA), "kind", g.T_F16),
                setattr(f.tensor(QA), "data", b"\x01\x7d" * 4 * g.D),
            ]
        ),
        "256 values that are NaN",
    ),
    "NaN in bf16": (spoiled(bf16_nan), "1 values that are NaN"),
    "NaN as a q8_0 block's scale": (q8_block_scale(float("nan")), "32 values that are NaN"),
    "infinity as a q8_0 block's scale": (q8_block_scale(float("inf")), "32 values"),
}

# Things whose message comes from the folder's scan, not from reading a file.
FOLDERS: dict[str, tuple[Write, str]] = {
    "a PEFT folder with a pickle only": (peft_with_pickle_only, "adapter_model.bin|pickle"),
    "weights without adapter_config.json": (folder_with_stray_weights, "no adapter_config.json"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_adapter_ends_in_a_clear_error(case, tmp_path):
    write, words = CASES[case]
    path = tmp_path / "x.gguf"
    write(path)
    started = time.process_time()
    with pytest.raises(AdapterError, match=words) as caught:
        read_adapter(path, BASE)
    assert time.process_time() - started < 5  # a hang would be minutes; the machine may be busy
    assert caught.value.message == "x.gguf cannot be used as an adapter"
    assert 1 <= len(caught.value.problems) <= 3
    for problem in caught.value.problems:
        assert problem.isprintable()
        assert len(problem) < 500


def test_the_healthy_adapters_of_the_same_folder_load(tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    things = CASES | FOLDERS
    for i, (write, _) in enumerate(things.values()):
        write(folder / f"bad{i:03}.gguf")
    for name in ("aaa", "bad050-sound", "zzz"):
        (folder / f"{name}.gguf").write_bytes(g.adapter().pack())
    seen = []

    pool = Pool.open(
        folder, BASE, cache=tmp_path / "cache", converter=FOR_POOL, on_problem=seen.append
    )

    assert pool.names == ("aaa", "bad050-sound", "zzz")
    assert tuple(seen) == pool.problems
    assert [problem.path.name for problem in pool.problems] == [
        f"bad{i:03}.gguf" for i in range(len(things))
    ]
    for problem, (_, words) in zip(pool.problems, things.values(), strict=True):
        assert problem.reason.isprintable()
        assert re.search(words, problem.reason)
    assert not (tmp_path / "cache" / "converted").exists() or not any(
        (tmp_path / "cache" / "converted").iterdir()
    )


def test_a_folder_of_malformed_adapters_lists_them_all(tmp_path):
    for i, (write, _) in enumerate(list(CASES.values())[:5]):
        write(tmp_path / f"bad{i}.gguf")
    with pytest.raises(PoolError, match="none of the adapters") as caught:
        Pool.open(tmp_path, BASE, cache=tmp_path / "cache")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        f"bad{i}.gguf" for i in range(5)
    ]


def test_everything_wrong_is_reported_at_once(tmp_path):
    file = g.adapter(alpha=float("nan")).set("general.architecture", g.STRING, "qwen2")
    file.tensors = [
        tensor
        for block in range(2)
        for kind in ("attn_q", "attn_v")
        for tensor in g.pair(
            f"blk.{block}.{kind}.weight", np.zeros((8, 128), "f"), np.zeros((128, 8), "f")
        )
    ]
    path = tmp_path / "other.gguf"
    path.write_bytes(file.pack())
    with pytest.raises(AdapterError) as caught:
        read_adapter(path, BASE)
    assert caught.value.problems == (
        "made for a model 128 wide with 2 blocks; this one is 64 wide with 2",
        "adapter.lora.alpha is nan",
    )
    assert caught.value.details[:2] == (
        "general.architecture is 'qwen2', not 'llama', the base's",
        "blk.0.attn_q.weight: lora_a is (8, 128) and lora_b (128, 8), "
        "where the base needs (rank, 64) and (64, rank)",
    )
    assert len(caught.value.details) == 5
    assert caught.value.hint == "was it made for another base model? This one is tiny base"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("embeddings", [False, True])
def test_numbers_that_are_finite_and_too_large_are_refused(tmp_path, dtype, embeddings):
    base = BaseModel.read(write_base(tmp_path / "base.gguf"))
    huge = {np.float32: 1e30, np.float16: 1e4}[dtype]
    kinds = {"kinds": (), "embeddings": True} if embeddings else {"kinds": ("attn_q",)}
    sound = write_adapter(tmp_path / "sound.gguf", 1, dtype=dtype, alpha=64.0, **kinds)
    assert read_adapter(sound, base).modules
    path = write_adapter(tmp_path / "huge.gguf", 1, dtype=dtype, alpha=64.0, loudness=huge, **kinds)
    with pytest.raises(AdapterError) as caught:
        read_adapter(path, base)
    assert "more than a float16 can hold" in caught.value.problems[0]
    assert "earlier checkpoint" in caught.value.hint


def test_the_largest_change_is_never_less_than_that_of_the_product():
    rng = np.random.default_rng(5)
    a = rng.standard_normal((4, 30)).astype(np.float32)
    b = rng.standard_normal((20, 4)).astype(np.float32)
    bound = largest_change(a, b, "blk.0.attn_q.weight")
    assert np.abs(b @ a).max() <= bound <= 4 * np.abs(b).max() * np.abs(a).max()
    # One entry alone: 3 * 5, and nothing is summed up.
    one_a, one_b = np.zeros_like(a), np.zeros_like(b)
    one_a[2, 7], one_b[11, 2] = 5, -3
    assert largest_change(one_a, one_b, "blk.0.attn_q.weight") == 15
    assert largest_change(one_a.T, one_b, "token_embd.weight") == 15
