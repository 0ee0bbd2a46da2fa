"""Adapters as other tools leave them: what is taken, and what is refused with its reason, once."""

import json

import numpy as np
import pytest
from peft_folder import factors, read_lora, write_peft
from random_gguf import SMALL, write_adapter, write_base
from safetensors.numpy import load_file, save_file

from logo_local.convert import convert_adapter, plan_conversion
from logo_local.errors import AdapterError, ConversionError, ModelError, PoolError
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel
from logo_local.files.pool import Pool

MODULES = {
    f"model.layers.{block}.self_attn.{kind}": (64, 64)
    for block in range(SMALL.blocks)
    for kind in ("q_proj", "o_proj")
}
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.fixture(scope="module")
def base(random_base):
    return BaseModel.read(random_base)


def renamed(folder, rename):
    """The PEFT adapter in `folder` with other names of its tensors."""
    path = folder / "adapter_model.safetensors"
    tensors = {rename(name): values for name, values in load_file(path).items()}
    save_file(tensors, path)
    return folder


def reconfigured(folder, *, remove=(), **settings):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))
    return folder


WRAPPED = {
    "DataParallel": lambda name: f"module.{name}",
    "Distributed": lambda name: name.replace("base_model.model.", "base_model.model.module."),
    "FSDP": lambda name: name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
    "checkpointing": lambda name: name.replace(
        ".self_attn", "._checkpoint_wrapped_module.self_attn"
    ),
    "torch.compile": lambda name: name.replace("model.layers", "model._orig_mod.layers"),
}


@pytest.mark.parametrize("who", WRAPPED)
def test_names_that_a_wrapper_changed_are_read_without_it(base, tmp_path, who):
    plain = write_peft(tmp_path / "plain", factors(MODULES))
    wrapped = renamed(write_peft(tmp_path / "wrapped", factors(MODULES)), WRAPPED[who])
    expected = convert_adapter(plain, base, tmp_path / "plain.gguf", "f32")
    found = convert_adapter(wrapped, base, tmp_path / "wrapped.gguf", "f32")
    assert [row.target for row in found.rows] == [row.target for row in expected.rows]
    (note,) = found.notes
    assert who.removesuffix("Parallel") in note
    for target, (a, b) in read_lora(tmp_path / "plain.gguf")[1].items():
        np.testing.assert_array_equal(read_lora(tmp_path / "wrapped.gguf")[1][target][0], a)
        np.testing.assert_array_equal(read_lora(tmp_path / "wrapped.gguf")[1][target][1], b)


def refused(base, folder, **options):
    with pytest.raises(ConversionError) as caught:
        plan_conversion(folder, base, folder.parent / "out.gguf", **options)
    (problem,) = caught.value.problems
    return problem, caught.value.hint


def test_a_model_that_was_wrapped_twice_is_refused_once(base, tmp_path):
    folder = write_peft(tmp_path / "twice", factors(MODULES))
    renamed(folder, lambda name: f"base_model.model.{name}")
    problem, hint = refused(base, folder)
    assert "wrapped twice" in problem
    assert "merge_and_unload" in hint


def test_tinkers_output_layer_is_the_output_layer(base, tmp_path):
    folder = write_peft(tmp_path / "tinker", factors({"model.unembed_tokens": (300, 64)}))
    (row,) = plan_conversion(folder, base, tmp_path / "out.gguf").rows
    assert row.target == "output.weight"


def test_tinkers_feed_forward_layers_are_named(base, tmp_path):
    modules = {f"model.layers.{i}.mlp.w{n}": (96, 64) for i in range(3) for n in (1, 3)}
    problem, _ = refused(base, write_peft(tmp_path / "tinker", factors(modules)))
    assert "Tinker" in problem
    assert "5 more" in problem


def test_a_classifier_is_refused_as_one(base, tmp_path):
    tensors = factors(MODULES) | {"base_model.model.score.weight": np.ones((2, 64), np.float32)}
    folder = write_peft(
        tmp_path / "classifier", tensors, task_type="SEQ_CLS", modules_to_save=["score"]
    )
    problem, hint = refused(base, folder)
    assert problem == "it is a sequence classifier (task_type SEQ_CLS), which cannot generate text"
    assert "CAUSAL_LM" in hint
    reconfigured(folder, remove=("task_type", "modules_to_save"))
    assert "output layer of a classifier" in refused(base, folder)[0]


def test_rank_and_alpha_are_pefts_defaults_where_the_config_has_none(base, tmp_path):
    folder = write_peft(tmp_path / "short", factors(MODULES, rank=8))
    reconfigured(folder, remove=("r", "lora_alpha"))
    convert_adapter(folder, base, tmp_path / "short.gguf", "f32")
    alpha, found = read_lora(tmp_path / "short.gguf")
    assert alpha == 8
    assert {a.shape[0] for a, _ in found.values()} == {8}


@pytest.mark.parametrize("method", ["LOHA", "LOKR", "VERA", "FOURIERFT", "MISS"])
def test_other_methods_can_be_made_a_lora_by_peft(base, tmp_path, method):
    folder = write_peft(tmp_path / "other", factors(MODULES), peft_type=method)
    assert "save_as_lora" in refused(base, folder)[1]


def test_an_architecture_without_converter_takes_gguf_files(base, tmp_path):
    path = write_base(tmp_path / "base.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"plamo"))
    folder = write_peft(tmp_path / "x", factors(MODULES))
    assert "a GGUF LoRA file for this base works" in refused(BaseModel.read(path), folder)[1]


# --- kinds of files


def test_git_lfs_pointers_are_named(base, random_base, tmp_path):
    (tmp_path / "pointer.gguf").write_text(POINTER)
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path / "pointer.gguf", base)
    assert "git-lfs pointer" in caught.value.problems[0]
    assert "git lfs pull" in caught.value.hint
    with pytest.raises(ModelError, match="git-lfs pointer") as model:
        BaseModel.read(tmp_path / "pointer.gguf")
    assert "git lfs pull" in model.value.hint
    folder = write_peft(tmp_path / "peft", factors(MODULES))
    (folder / "adapter_model.safetensors").write_text(POINTER)
    problem, hint = refused(base, folder)
    assert "git-lfs pointer" in problem
    assert "git lfs pull" in hint


def test_adapters_of_2023_are_not_called_pickles(base, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / "ggml-adapter-model.bin").write_bytes(b"algg" + bytes(100))
    (folder / "pointer.bin").write_text(POINTER)
    (folder / "real.bin").write_bytes(b"\x80\x02" + bytes(100))
    (folder / "renamed.gguf").write_bytes(b"algg" + bytes(100))
    with pytest.raises(PoolError) as caught:
        Pool.open(folder, base, cache=tmp_path / "cache")
    lines = dict(line.split(": ", 1) for line in caught.value.problems)
    assert "GGLA" in lines["ggml-adapter-model.bin"]
    assert "git-lfs" in lines["pointer.bin"]
    assert "a pickle file" in lines["real.bin"]
    assert "GGLA" in lines["renamed.gguf"]


# --- vision models


def test_the_text_part_of_a_vision_adapter_is_offered_once_and_taken_on_request(base, tmp_path):
    vision = {f"model.vision_tower.layers.{i}.self_attn.q_proj": (32, 32) for i in range(9)}
    vision["model.multi_modal_projector.linear_1"] = (64, 32)
    folder = write_peft(tmp_path / "both", factors(MODULES | vision))
    problem, hint = refused(base, folder)
    assert "multi_modal_projector (1 layer), vision_tower (9 layers)" in problem
    assert "--text-part" in hint
    plan = plan_conversion(folder, base, tmp_path / "out.gguf", text_part=True)
    assert len(plan.rows) == len(MODULES)
    assert "vision_tower (9 layers)" in plan.notes[0]
    text_only = write_peft(tmp_path / "text", factors(MODULES))
    assert not plan_conversion(text_only, base, tmp_path / "o.gguf", text_part=True).notes


# --- mlx-lm


def test_both_readings_of_mlx_alpha_are_said(base, tmp_path):
    folder = tmp_path / "mlx"
    folder.mkdir()
    given = factors({"model.layers.0.self_attn.q_proj": (64, 64)}, rank=8)
    tensors = {
        f"model.layers.0.self_attn.q_proj.lora_{part.lower()}": given[name].T.copy()
        for name in given
        if (part := name.split(".lora_")[1][0])
    }
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": 8, "alpha": 16.0, "scale": 10.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    plan = plan_conversion(folder, base, tmp_path / "out.gguf")
    assert [row.scaling for row in plan.rows] == [10.0]
    (note,) = plan.notes
    assert "scale * alpha / rank = 20" in note
    assert "later releases with 10, which is taken here" in note
    del parameters["alpha"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert not plan_conversion(folder, base, tmp_path / "out.gguf").notes


def test_a_sound_adapter_is_still_taken(base, tmp_path):
    assert read_adapter(write_adapter(tmp_path / "x.gguf", 1), base).modules
