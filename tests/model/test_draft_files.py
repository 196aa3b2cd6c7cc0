"""The checkpoint as the servers read it, and what is refused on the way back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_draft import random_draft, random_target
from transformers import Qwen3Config

from specforge.errors import UserError
from specforge.model.files import aux_layers_of, draft_config, load_draft, save_draft
from specforge.model.vocab import load_vocab, save_vocab
from specforge.target.model import aux_layers

KEPT = torch.tensor([0, 3, 4, 9, 17, 18, 30, 39])
PROJECTIONS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
NORMS = ["hidden_norm", "input_layernorm", "post_attention_layernorm"]
NAMES = {f"midlayer.{name}.weight" for name in PROJECTIONS + NORMS} | {
    "fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d",
}  # fmt: skip


@pytest.fixture
def draft():
    return random_draft(random_target(), KEPT)


@pytest.fixture
def checkpoint(draft, tmp_path):
    save_draft(tmp_path, draft, torch.float32)
    return tmp_path


def rewrite(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_tensors_have_the_names_that_the_servers_know(checkpoint):
    assert set(load_file(checkpoint / "model.safetensors")) == NAMES


def test_the_vocabulary_maps_are_two_views_of_the_same_tokens(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    assert (tensors["d2t"].dtype, tensors["t2d"].dtype, len(tensors["t2d"])) == (torch.int64, torch.bool, 40)
    assert torch.equal(tensors["d2t"] + torch.arange(len(KEPT)), KEPT)
    assert torch.equal(tensors["t2d"].nonzero()[:, 0], KEPT)


def test_config_names_the_layers_in_both_conventions():
    target = Qwen3Config(num_hidden_layers=36, hidden_size=64, vocab_size=512)
    config = draft_config(target, 32, aux_layers(36, None)).to_dict()
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 17, 32]
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 18, 33]


def test_config_is_that_of_a_one_layer_llama_with_the_targets_shapes(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLMEagle3"], "llama")
    assert {name: config[name] for name in ("num_hidden_layers", "draft_vocab_size", "tie_word_embeddings")} == {
        "num_hidden_layers": 1, "draft_vocab_size": 8, "tie_word_embeddings": False,
    }  # fmt: skip
    target = random_target().model.config
    same = (
        "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
        "max_position_embeddings", "vocab_size", "intermediate_size",
    )  # fmt: skip
    assert {name: config[name] for name in same} == {name: getattr(target, name) for name in same}


@pytest.mark.parametrize("kind", ["default", "yarn"])
def test_config_carries_the_rope_in_the_old_and_the_new_form(tmp_path, kind):
    rope = {"rope_type": kind, "rope_theta": 1e6}
    if kind == "yarn":
        rope |= {"factor": 4.0, "original_max_position_embeddings": 32}
    target = random_target()
    target.model.config.rope_parameters = rope
    save_draft(tmp_path, random_draft(target, KEPT), torch.float32)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_parameters"] == rope
    assert written["rope_theta"] == 1e6  # what servers on transformers 4 read; they take 10000 where it is absent
    assert written["rope_scaling"] == (None if kind == "default" else rope)
    assert load_draft(tmp_path, torch.float32).config.rope_parameters == rope


def served_names(tensors: dict, ignored: set[str]) -> set[str]:
    """Parameters of a server's draft that are filled: `midlayer.` is layers.0, q/k/v and gate/up share one matrix.

    Rows of a fused matrix are asked for in full, since a server leaves a missing shard as it was, silently.
    """
    fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    filled, shards = set(), {}
    for name in set(tensors) - ignored:
        served = name.replace("midlayer.", "layers.0.")
        for whole, parts in fused.items():
            for part in parts:
                if f".{part}." in served:
                    served = served.replace(part, whole)
                    shards.setdefault(served, set()).add(part)
        filled.add(served)
    assert all(parts in map(set, fused.values()) for parts in shards.values())
    return filled


def test_a_server_finds_all_its_parameters_and_uses_every_tensor(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    layer = {
        f"layers.0.{name}.weight" for name in (
            "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", *NORMS,
        )
    }  # fmt: skip
    vllm = layer | {"fc.weight", "norm.weight", "lm_head.weight", "d2t"}
    assert served_names(tensors, ignored={"t2d"}) == vllm
    sglang = {name.replace("layers.0.", "midlayer.") for name in vllm} | {"t2d"}
    served = {name.replace("layers.0.", "midlayer.") for name in served_names(tensors, ignored=set())}
    assert served == sglang


def test_a_server_can_build_the_shapes_from_the_config_alone(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    shapes = {name: tuple(x.shape) for name, x in load_file(checkpoint / "model.safetensors").items()}
    hidden, size = config["hidden_size"], config["head_dim"]
    assert shapes["fc.weight"] == (hidden, 3 * hidden)
    assert shapes["midlayer.self_attn.q_proj.weight"] == (config["num_attention_heads"] * size, 2 * hidden)
    assert shapes["midlayer.self_attn.v_proj.weight"] == (config["num_key_value_heads"] * size, 2 * hidden)
    assert shapes["midlayer.mlp.gate_proj.weight"] == (config["intermediate_size"], hidden)
    assert shapes["lm_head.weight"] == (config["draft_vocab_size"], hidden)


def test_a_draft_comes_back_as_it_was(draft, checkpoint):
    loaded = load_draft(checkpoint, torch.float32)
    torch.testing.assert_close(loaded.state_dict(), draft.state_dict(), rtol=0, atol=0)
    assert aux_layers_of(loaded.config) == (0, 1, 2)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_weights_are_stored_in_the_training_dtype_and_maps_as_they_are(draft, tmp_path):
    save_draft(tmp_path, draft, torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    assert (tensors["fc.weight"].dtype, tensors["d2t"].dtype) == (torch.bfloat16, torch.int64)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_missing_tensor_is_refused_by_name(checkpoint, name):
    rewrite(checkpoint, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=name):
        load_draft(checkpoint, torch.float32)


def test_an_unknown_tensor_is_refused_by_name(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.update({"midlayer.self_attn.q_norm.weight": torch.ones(8)}))
    with pytest.raises(UserError, match="q_norm"):
        load_draft(checkpoint, torch.float32)


def test_a_misshapen_tensor_is_refused_by_name(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.update({"fc.weight": torch.ones(16, 32)}))
    with pytest.raises(UserError, match=r"fc\.weight"):
        load_draft(checkpoint, torch.float32)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_one_sentence(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing; run .*\.$"):
        load_draft(checkpoint, torch.float32)


def test_a_torn_weights_file_is_a_user_error(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_draft(checkpoint, torch.float32)


def test_vocabulary_maps_come_back(tmp_path):
    save_vocab(tmp_path / "vocab.safetensors", KEPT, 40)
    d2t, t2d = load_vocab(tmp_path / "vocab.safetensors", 40)
    assert torch.equal(d2t + torch.arange(8), KEPT)
    assert torch.equal(t2d.nonzero()[:, 0], KEPT)


def test_a_map_of_another_target_is_refused(tmp_path):
    save_vocab(tmp_path / "vocab.safetensors", KEPT, 40)
    with pytest.raises(UserError, match="maps 40 tokens, the target has 64"):
        load_vocab(tmp_path / "vocab.safetensors", 64)


def test_maps_that_disagree_are_refused(tmp_path):
    t2d = torch.zeros(40, dtype=torch.bool)
    t2d[KEPT] = True
    save_file({"d2t": KEPT - torch.arange(8) + 1, "t2d": t2d}, tmp_path / "vocab.safetensors")
    with pytest.raises(UserError, match="disagree"):
        load_vocab(tmp_path / "vocab.safetensors", 40)


def test_the_layer_rule_and_its_limits():
    assert aux_layers(36, None) == (1, 17, 32)
    assert aux_layers(4, (0, 1, 2)) == (0, 1, 2)
    with pytest.raises(UserError, match="4 layers is too shallow"):
        aux_layers(4, None)
    with pytest.raises(UserError, match="layer 3 is not below the last"):
        aux_layers(4, (0, 1, 3))


def test_a_bf16_draft_keeps_its_rotary_frequencies():
    target = random_target()
    draft = random_draft(target, torch.arange(0, 40, 2))
    wanted = draft.rotary.inv_freq.clone()
    draft.to(torch.bfloat16)
    assert draft.fc.weight.dtype == torch.bfloat16
    assert draft.rotary.inv_freq.dtype == torch.float32
    assert torch.equal(draft.rotary.inv_freq, wanted)
