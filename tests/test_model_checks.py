"""Base models that would end the process in llama.cpp, or were tracebacks: refused before."""

import gguf
import gguf_bytes as g
import numpy as np
import pytest
from random_gguf import write_adapter, write_base

from logo_local import LoGo
from logo_local.errors import ContextError, ModelError, NativeError
from logo_local.files.base_model import BaseModel
from logo_local.files.model_checks import problems_of_keys, problems_of_tensors

SOUND = {
    "llama.block_count": 3,
    "llama.embedding_length": 64,
    "llama.context_length": 256,
    "llama.attention.head_count": [4, 4, 2],
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.expert_count": 8,
    "llama.expert_used_count": 2,
    "general.alignment": 32,
    "llama.rope.scaling.type": "yarn",
    "tokenizer.ggml.model": "gpt2",
}


def test_a_sound_model_has_no_problems(random_base):
    assert problems_of_keys("llama", SOUND) == []
    assert BaseModel.read(random_base).n_blocks == 3


WRONG = {
    "llama.block_count": [0, -1, 100_000, "3", 3.5, True, [3], float("nan")],
    "llama.embedding_length": [0, "64", [64], 2**40],
    "llama.context_length": [2**31, 0, "256", float("nan"), [256]],
    "llama.attention.head_count": ["4", [4, "4"], [], -4, 1.5],
    "llama.attention.layer_norm_rms_epsilon": [-1.0, float("nan"), float("inf"), "x", 1],
    "llama.expert_count": [513, "8"],
    "llama.expert_used_count": [9, -1],
    "general.alignment": [1, 0, 24, "32"],
    "llama.rope.scaling.type": ["nothing", 5],
    "tokenizer.ggml.model": [5, ["gpt2"]],
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_types_and_ranges_are_named(key):
    for value in WRONG[key]:
        (problem,) = problems_of_keys("llama", {**SOUND, key: value})
        assert problem.startswith(key)


def changed(path, key, value):
    """The random base with another value of a key, of the type that Python's value says."""
    reader = gguf.GGUFReader(write_base(path.with_name("sound.gguf")))
    kinds = {int: g.U32, float: g.F32, str: g.STRING, list: g.ARRAY}
    file = g.Gguf()
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        kind, content = int(field.types[0]), field.contents()
        if kind == g.ARRAY:
            content = (int(field.types[-1]), content)
        file.keys.append((name, kind, content))
    if isinstance(value, list):
        value = (g.STRING, value)
        file.set(key, g.ARRAY, value)
    else:
        file.set(key, kinds[type(value)], value)
    for tensor in reader.tensors:
        dims, data = tensor.shape.tolist(), np.ascontiguousarray(tensor.data).tobytes()
        file.tensors.append(g.Tensor(tensor.name, dims, data, int(tensor.tensor_type)))
    path.write_bytes(file.pack())
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", 100_000),
        ("llama.context_length", "many"),
        ("llama.context_length", 2**31),
        ("llama.embedding_length", ["a", "b"]),
        ("llama.attention.head_count", float("nan")),
        ("llama.attention.layer_norm_rms_epsilon", -1.0),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
        ("split.count", "two"),
        ("split.count", float("nan")),
        ("tokenizer.ggml.model", 7),
        ("llama.rope.scaling.type", "unheard"),
    ],
)
def test_a_changed_file_is_an_error_that_names_the_key(tmp_path, key, value):
    with pytest.raises(ModelError) as caught:
        BaseModel.read(changed(tmp_path / "x.gguf", key, value))
    assert key in str(caught.value)


def test_a_token_that_is_there_twice(tmp_path):
    path = write_base(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes().replace(b"w23", b"w24"))
    with pytest.raises(ModelError) as caught:
        BaseModel.read(path)
    assert caught.value.problems == ("tokenizer.ggml.tokens has the token 'w24' twice",)


@pytest.mark.parametrize("broken", [b"<0xZZ>", b"<0x4G>", b"abcdef"])
def test_a_byte_without_a_token(tmp_path, broken):
    """llama.cpp ended the process (unordered_map::at) at the first text with that byte."""
    path = write_base(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes().replace(b"<0x41>", broken))
    with pytest.raises(ModelError) as caught:
        BaseModel.read(path)
    assert caught.value.problems == ("tokenizer.ggml.tokens has no token for the byte 0x41",)


@pytest.mark.parametrize("tensor", ["blk.0.attn_q.weight", "blk.0.ffn_norm.weight"])
def test_weights_that_are_not_numbers(tmp_path, tensor):
    """They were a traceback of numpy while profiles were made, and NaN in embeddings."""
    path = write_base(tmp_path / "x.gguf")
    place = next(t for t in gguf.GGUFReader(path).tensors if t.name == tensor)
    data = bytearray(path.read_bytes())
    nan = np.array(np.nan, place.data.dtype).tobytes()
    data[place.data_offset : place.data_offset + len(nan)] = nan
    path.write_bytes(data)
    for name in ("a0", "a1"):
        (tmp_path / "pool").mkdir(exist_ok=True)
        write_adapter(tmp_path / "pool" / f"{name}.gguf", 1)
        (tmp_path / "pool" / f"{name}.prompts.txt").write_text(f"a prompt of {name}\nw1 w2\n")
    with LoGo(path, tmp_path / "pool", n_ctx=256, n_threads=1, past=False) as llm:
        for use in (lambda: llm.route("w1 w2"), lambda: llm.embeddings(["w1 w2"])):
            with pytest.raises(NativeError, match="not finite"):
                use()


def test_the_same_file_with_its_own_values_is_read(tmp_path):
    path = changed(tmp_path / "x.gguf", "llama.context_length", 512)
    assert BaseModel.read(path).n_ctx_train == 512


def test_tensors_in_types_that_are_no_weights():
    lines = problems_of_tensors(
        [
            ("token_embd.weight", 2, "Q4_K"),
            ("blk.0.attn_q.weight", 2, "I32"),
            ("blk.1.attn_q.weight", 2, "I32"),
            ("blk.0.attn_norm.weight", 1, "BF16"),
            ("blk.1.attn_norm.weight", 1, "F32"),
            ("output_norm.weight", 1, "Q8_0"),
        ]
    )
    assert lines == [
        "blk.0.attn_q.weight is stored as I32, which no weight is (and 1 more like this)",
        "blk.0.attn_norm.weight is a vector stored as BF16, which llama.cpp cannot compute with",
        "output_norm.weight is a vector stored as Q8_0, which llama.cpp cannot compute with",
    ]


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    random_base, random_adapters, monkeypatch
):
    with LoGo(random_base, random_adapters, n_ctx=256, self_profile=False, past=False) as llm:
        assert llm.loaded.longest_token == 6  # <0x00>
        tokenised = []
        real = llm._model.tokenize
        monkeypatch.setattr(
            llm._model, "tokenize", lambda *a, **b: (tokenised.append(1), real(*a, **b))[1]
        )
        with pytest.raises(ContextError, match="at most 1,536"):
            llm.tokens_of("x" * 1537)
        assert tokenised == []
        assert len(llm.tokenize(b"x" * 1537)) > 256  # as in llama_cpp, where it is no prompt
