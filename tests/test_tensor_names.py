"""Names of layers by where they sit in the Hugging Face model, and the GGUF weights they became."""

import numpy as np
import pytest
from peft_folder import factors, read_lora, write_peft

from logo_local.convert import convert_adapter
from logo_local.convert.layouts import LAYOUTS
from logo_local.convert.tensor_names import TensorNames, not_text
from logo_local.errors import ConversionError
from logo_local.files.base_model import BaseModel


@pytest.fixture(scope="module")
def base(random_base):
    return BaseModel.read(random_base)


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("model.layers.1.self_attn.q_proj", "blk.1.attn_q.weight"),
        # transformers since 4.52, before, and models whose text part has a model of its own
        ("model.language_model.layers.1.self_attn.q_proj", "blk.1.attn_q.weight"),
        ("language_model.model.layers.1.self_attn.q_proj", "blk.1.attn_q.weight"),
        ("model.language_model.model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"),
        ("language_model.layers.2.mlp.up_proj", "blk.2.ffn_up.weight"),
        ("model.text_model.layers.0.self_attn.o_proj", "blk.0.attn_output.weight"),
        ("text_model.layers.0.self_attn.o_proj", "blk.0.attn_output.weight"),
        ("thinker.model.layers.0.mlp.gate_proj", "blk.0.ffn_gate.weight"),
        ("llm.model.layers.0.mlp.gate_proj", "blk.0.ffn_gate.weight"),
        ("_orig_mod.model.layers.0.mlp.gate_proj", "blk.0.ffn_gate.weight"),
        ("language_model.lm_head", "output.weight"),
        ("thinker.lm_head", "output.weight"),
        ("model.language_model.embed_tokens", "token_embd.weight"),
        ("language_model.model.embed_tokens", "token_embd.weight"),
        # a wrapper of no known name, or not at the beginning
        ("wrapper.model.layers.1.self_attn.q_proj", None),
        ("model.layers.1.language_model.self_attn.q_proj", None),
        ("model.language_model.layers.1.self_attn.z_proj", None),
        ("model.language_model.layers.7.self_attn.q_proj", None),
        # other parts, also where what follows looks like a text part's
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", None),
        ("model.vision_tower.language_model.layers.0.self_attn.q_proj", None),
        ("model.visual.model.layers.0.self_attn.q_proj", None),
        ("model.audio_tower.layers.0.self_attn.q_proj", None),
    ],
)
def test_where_a_layer_sits_does_not_change_what_it_is(module, target, base):
    assert TensorNames(base).target(module) == target


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("model.layers.1.mlp.experts.gate_up_proj", 1),
        ("model.language_model.layers.1.mlp.experts.gate_up_proj", 1),
        ("language_model.model.layers.2.mlp.experts.3.gate_proj", 2),
        ("thinker.model.layers.0.mlp.experts.down_proj", 0),
        ("model.layers.7.mlp.experts.down_proj", 7),  # what the base does not have is seen later
        ("mlp.experts.gate_up_proj", None),
        ("wrapper.model.layers.1.mlp.experts.gate_up_proj", None),
        ("model.audio_tower.layers.0.mlp.experts.gate_up_proj", None),
    ],
)
def test_the_block_that_a_layer_lies_in(module, block, base):
    expected = None if block is None else f"blk.{block}.ffn_up_exps.weight"
    assert TensorNames(base).in_block(module, "ffn_up_exps") == expected


def test_a_layer_beyond_a_wrapped_base_is_known_as_such(base):
    names = TensorNames(base)
    module = "model.language_model.layers.7.self_attn.q_proj"
    assert names.why_unknown(module) == "layer 7 is beyond the base's 3 layers"


def test_no_architecture_has_text_layers_named_as_another_part(base):
    """Else such a layer would be refused, although it is in the GGUF file."""
    import gguf

    for name, number in ((n, a) for a, n in gguf.MODEL_ARCH_NAMES.items() if n in LAYOUTS):
        for module, (kind, _) in gguf.get_tensor_name_map(number, 2).mapping.items():
            assert not not_text(module), (name, module, kind)


@pytest.mark.parametrize(
    "other", ["language_model.model.", "model.language_model.", "model.text_model."]
)
def test_two_names_for_one_weight_are_refused(other, base, tmp_path):
    shapes = {f"{start}layers.0.self_attn.q_proj": (64, 64) for start in ("model.", other)}
    with pytest.raises(ConversionError) as caught:
        convert_adapter(write_peft(tmp_path / "x", factors(shapes)), base, tmp_path / "x.gguf")
    (problem,) = caught.value.problems
    assert problem.endswith("are both blk.0.attn_q.weight")
    assert all(name in problem for name in shapes)


@pytest.mark.parametrize("start", ["language_model.model.", "model.language_model."])
def test_a_wrapped_adapter_is_the_same(start, base, tmp_path):
    """Rows of queries reordered as for any other; patterns are matched by the names PEFT knows."""
    found = []
    for name in ("model.", start):
        shapes = {
            f"{name}layers.0.self_attn.q_proj": (64, 64),
            f"{name}layers.1.mlp.up_proj": (96, 64),
        }
        pattern = {rf"^{name}layers\.1.*": 5}
        folder = write_peft(tmp_path / name, factors(shapes), alpha_pattern=pattern)
        conversion = convert_adapter(folder, base, tmp_path / "x.gguf", "f32")
        assert [row.scaling for row in conversion.rows] == [2.0, 1.25]
        assert conversion.rows[0].transform == "rotary rows, 4 heads"
        found.append(read_lora(tmp_path / "x.gguf")[1])
    plain, wrapped = found
    for target in ("blk.0.attn_q.weight", "blk.1.ffn_up.weight"):
        for one, other in zip(plain[target], wrapped[target], strict=True):
            np.testing.assert_array_equal(one, other)


def test_other_parts_are_one_line(base, tmp_path):
    shapes = {
        "model.language_model.layers.0.self_attn.q_proj": (64, 64),
        "model.vision_tower.encoder.layers.0.self_attn.q_proj": (32, 32),
        "model.vision_tower.encoder.layers.1.self_attn.q_proj": (32, 32),
        "model.multi_modal_projector.linear_1": (64, 32),
    }
    with pytest.raises(ConversionError) as caught:
        convert_adapter(write_peft(tmp_path / "x", factors(shapes)), base, tmp_path / "x.gguf")
    assert caught.value.problems == (
        "it adapts multi_modal_projector (1 layer), vision_tower (2 layers), but the GGUF base "
        "holds the text part only",
    )
    assert "--text-part" in caught.value.hint
