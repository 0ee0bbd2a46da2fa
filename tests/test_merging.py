"""Several adapters as one file: equal to the mixture, the nearest of a rank, what is refused."""

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import Llama
from peft_folder import factors, write_peft
from random_gguf import SMALL, write_adapter

from logo_local.commands.cli import cli
from logo_local.convert.merging import merge, parsed, truncated
from logo_local.errors import AdapterError, ConversionError
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.llama.mixture import Mixer, ResidentAdapters
from logo_local.llama.model import LoadedModel
from logo_local.llama.probe import EachProbe

TOKENS = [1, *range(60, 80)]
MODULES = len(SMALL.matrices) * SMALL.blocks


@pytest.fixture(scope="module")
def base(random_base):
    return BaseModel.read(random_base)


@pytest.fixture
def parts(tmp_path):
    """Adapters of other ranks, modules and types, and one in PEFT's form."""
    peft = factors({"model.layers.0.self_attn.q_proj": (64, 64)}, rank=3)
    return [
        (write_adapter(tmp_path / "all.gguf", 1, rank=5), 0.6),
        (write_adapter(tmp_path / "some.gguf", 2, rank=3, kinds=("attn_q", "attn_v")), -0.3),
        (write_adapter(tmp_path / "whole.gguf", 3, rank=2, embeddings=True), 0.5),
        (write_peft(tmp_path / "peft", peft, r=3, lora_alpha=6), 0.2),
    ]


def test_a_merged_file_equals_the_mixture(parts, base, tmp_path):
    merged = merge(parts, base, tmp_path / "merged.gguf", outtype="f32")
    assert merged.lost == 0.0
    assert merged.ranks == (2, 13)  # an embedding only one has; a query that all have
    assert "ranks 2 to 13, exact" in merged.line
    llama = Llama(str(base.path), n_ctx=256, verbose=False, type_k=0, type_v=0)
    probe = EachProbe(LoadedModel(llama))
    residents = ResidentAdapters(llama.model, 1 << 30)
    mixer = Mixer(LoadedModel(llama), probe.ctx, residents, way="scales")
    one = read_adapter(tmp_path / "merged.gguf", base)
    mixer.set([(one, 1.0)])
    found = probe.logits(TOKENS)
    converted = merge([(parts[3][0], 1.0)], base, tmp_path / "peft.gguf", outtype="f32")
    files = [read_adapter(path, base) for path, _ in parts[:3]]
    files.append(read_adapter(converted.out, base))
    mixer.set(list(zip(files, [weight for _, weight in parts], strict=True)))
    expected = probe.logits(TOKENS)
    assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)
    mixer.close()
    residents.close()
    probe.close()
    llama.close()


def test_numbers_in_float16_are_kept_as_they_are(base, tmp_path):
    paths = [
        write_adapter(tmp_path / f"{i}.gguf", i, rank=2 + i, alpha=2.0 + i, dtype=np.float16)
        for i in range(2)
    ]
    merge([(path, 1.0) for path in paths], base, tmp_path / "merged.gguf")
    merged = read_adapter(tmp_path / "merged.gguf", base)
    both = [read_adapter(path, base).factors("blk.1.ffn_up.weight") for path in paths]
    a, b = merged.factors("blk.1.ffn_up.weight")
    np.testing.assert_array_equal(a, np.concatenate([a for a, _ in both]))
    np.testing.assert_array_equal(b, np.concatenate([b for _, b in both], axis=1))
    assert merged.modules["blk.1.ffn_up.weight"].dtype == "F16"


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_the_nearest_of_a_rank(r, rank, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((r, 5), np.float32), rng.standard_normal((4, r), np.float32)
    new_a, new_b, lost = truncated(a, b, rank)
    assert len(new_a) == new_b.shape[1] <= min(r, rank, 4)
    s = np.linalg.svd(b @ a, compute_uv=False)
    best = np.linalg.norm(s[rank:])
    assert np.linalg.norm(new_b @ new_a - b @ a) == pytest.approx(best, abs=1e-4)
    assert lost == pytest.approx(best / np.linalg.norm(s), abs=1e-4)


def test_nothing_is_lost_of_an_update_that_is_zero():
    a, b, lost = truncated(np.zeros((3, 5), np.float32), np.zeros((4, 3), np.float32), 2)
    assert (a.any(), b.any(), lost) == (False, False, 0.0)


def test_a_smaller_rank_is_said_with_what_it_loses(parts, base, tmp_path):
    merged = merge(parts[:2], base, tmp_path / "merged.gguf", rank=4)
    assert merged.ranks == (4, 4)
    assert 0 < merged.lost < 1
    assert "of a layer's update left out" in merged.line
    fields = gguf.GGUFReader(tmp_path / "merged.gguf").fields
    assert fields["logo_local.merged"].contents() == "0.6 all, -0.3 some"
    with pytest.raises(ConversionError, match=r"token_embd.weight cannot be given a smaller rank"):
        merge(parts, base, tmp_path / "other.gguf", rank=4)


def test_all_that_cannot_be_merged_is_named_and_nothing_is_written(parts, base, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    wide = write_peft(tmp_path / "wide", factors({"model.layers.0.mlp.up_proj": (8, 8)}))
    given_parts = [*parts, (tmp_path / "bad.gguf", 1.0), (wide, 1.0), (tmp_path / "no.gguf", 1.0)]
    with pytest.raises(ConversionError) as caught:
        merge(given_parts, base, tmp_path / "merged.gguf")
    text = "\n".join(caught.value.problems)
    assert all(name in text for name in ("bad.gguf", "wide", "no.gguf"))
    assert not (tmp_path / "merged.gguf").exists()


def test_numbers_that_float16_cannot_hold(base, tmp_path):
    path = write_adapter(tmp_path / "loud.gguf", 1)
    with pytest.raises(ConversionError, match="too large for f16") as caught:
        merge([(path, 1e6)], base, tmp_path / "merged.gguf")
    assert "--outtype f32" in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loud.gguf"]
    assert merge([(path, 1e6)], base, tmp_path / "merged.gguf", outtype="f32").n_modules == MODULES


@pytest.mark.parametrize("text", ["a.gguf", "a.gguf=", "=1", "a.gguf=x", "a.gguf=nan", "a=inf"])
def test_what_is_no_adapter_with_a_weight(text):
    with pytest.raises(AdapterError, match="no adapter with a weight"):
        parsed(text)


def test_paths_may_hold_an_equals_sign():
    path, weight = parsed("a=b.gguf=-0.5")
    assert (str(path), weight) == ("a=b.gguf", -0.5)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--merge", "A=0.6", "--merge", "B=0.4"], 0, f"{MODULES} layers, ranks 4 to 9, exact"),
        (["--merge", "A=0.6", "--merge", "B=0.4", "--rank", "2"], 0, "rank 2, up to"),
        (["--merge", "A=x"], 1, "no adapter with a weight"),
        (["--merge", "A=1", "B"], 2, "--merge can only be combined with"),
        (["--merge", "A=1", "--outtype", "q8_0"], 2, "--merge writes f32 or f16"),
        ([], 2, "no adapter is given"),
        (["B", "--rank", "2"], 2, "--rank goes with --merge"),
    ],
)
def test_the_command(arguments, code, words, random_base, tmp_path):
    write_adapter(tmp_path / "A", 1, rank=4)
    write_adapter(tmp_path / "B", 2, rank=5, kinds=("attn_q",))
    with_paths = [f"{tmp_path}/{text}" if text[0] in "AB" else text for text in arguments]
    out = tmp_path / "merged.gguf"
    run = CliRunner().invoke(
        cli, ["convert", *with_paths, "--base", str(random_base), "--out", str(out)]
    )
    assert (run.exit_code, out.exists()) == (code, code == 0), run.stderr
    assert words in run.stdout + run.stderr
    if code == 0:
        again = CliRunner().invoke(
            cli, ["convert", *with_paths, "--base", str(random_base), "--out", str(out)]
        )
        assert again.exit_code == 1
        assert "exists" in again.stderr


def test_an_activated_lora_is_not_merged(base, tmp_path):
    """It would be in force everywhere."""
    one = factors({"model.layers.0.self_attn.q_proj": (64, 64)})
    folder = write_peft(tmp_path / "activated", one, alora_invocation_tokens=[5])
    with pytest.raises(ConversionError, match="it is an activated LoRA"):
        merge([(folder, 1.0)], base, tmp_path / "merged.gguf")
    assert not (tmp_path / "merged.gguf").exists()
