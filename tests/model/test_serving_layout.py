"""What SGLang, vLLM and a user of transformers alone make of a written checkpoint.

Neither server runs here, so the rules of their loaders stand below in our own words. Read were
  SGLang 0.5.23, the released wheel: models/llama_eagle3.py (names, shapes; at 03d5a77 `midlayer` keeps its name),
    model_executor/model_runner_components/spec_aux_hidden_state.py, models/{llama,qwen3}.py (layer ids, embedding);
  vLLM: model_executor/models/{llama_eagle3.py at 00bd149, registry.py at 0002bff} (names, shapes, architecture),
    v1/worker/gpu/spec_decode/eagle/{eagle3_utils.py at 0cfdd2e, utils.py at 055e47c} (layer ids, embedding).
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_draft import random_draft, random_target, vocab_maps
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from specforge.model.draft import Draft
from specforge.model.files import draft_config, load_draft, save_draft
from specforge.target.model import aux_layers

KEPT = torch.tensor([0, 3, 4, 9, 17, 18, 30, 39])
NESTED, IDS, LAYER = "eagle_config", "eagle_aux_hidden_state_layer_ids", "model.layers.0."
STACKED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32},
}
NORMS = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
Shape = tuple[int, ...]


@dataclass
class Loading:
    """What became of a checkpoint: shapes by parameter, or `parameter:shard`; tensors passed over; what went wrong.

    SGLang keeps quiet about unknown and missing ones, vLLM about missing ones.
    """

    filled: dict[str, Shape]
    ignored: set[str]
    unknown: set[str]
    misshapen: set[str]
    missing: set[str]


def shard(name: str) -> str:
    """A projection is a shard of a stacked parameter, anything else a whole one."""
    for part, whole in STACKED.items():
        if f".{part}_proj" in name:
            return f"{name.replace(f'.{part}_proj', f'.{whole}_proj')}:{part}"
    return name


class SGLang:
    """Keeps d2t beside its parameters as target ids; names of `model` may come with or without that prefix."""

    vocabulary, ties_head = "hot_token_id", True

    def __init__(self, folder: Path):
        self.config = AutoConfig.from_pretrained(folder).to_dict()  # as both servers read it
        self.tensors = load_file(folder / "model.safetensors")

    def place(self, name: str) -> str | None:
        """Where a tensor goes; None when it is passed over."""
        if "d2t" in name:
            return self.vocabulary
        if "t2d" in name:
            return None
        name = shard(name.replace("midlayer", "layers.0"))
        return name if name in self.parameters() else f"model.{name}"

    def parameters(self) -> dict[str, Shape]:
        """Shapes from config.json alone. The embedding is not among them: the target's takes its place."""
        c = self.config
        hidden, inner, rows = c["hidden_size"], c["intermediate_size"], c["draft_vocab_size"]
        query, key = (c[name] * c["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
        features = c.get("num_aux_hidden_states") or len((c.get(NESTED) or {}).get(IDS) or range(3))
        layer = {
            "self_attn.qkv_proj.weight:q": (query, 2 * hidden),
            "self_attn.qkv_proj.weight:k": (key, 2 * hidden),
            "self_attn.qkv_proj.weight:v": (key, 2 * hidden),
            "self_attn.o_proj.weight": (hidden, query),
            "mlp.gate_up_proj.weight:gate": (inner, hidden),
            "mlp.gate_up_proj.weight:up": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        layer |= {f"{name}.weight": (hidden,) for name in NORMS}
        shapes = {f"{LAYER}{name}": shape for name, shape in layer.items()} | {self.vocabulary: (rows,)}
        width = features * c.get("target_hidden_size", hidden)
        shapes |= {"model.fc.weight": (hidden, width), "model.norm.weight": (hidden,)}
        tied = self.ties_head and c["tie_word_embeddings"]  # to the embedding, so that it is no parameter of its own
        return shapes | ({} if tied else {"lm_head.weight": (rows, hidden)})

    def load(self) -> Loading:
        expected, places = self.parameters(), {name: self.place(name) for name in self.tensors}
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        known = {name: place for name, place in places.items() if place in expected}
        return Loading(
            filled={place: shapes[name] for name, place in known.items()},
            ignored={name for name, place in places.items() if place is None},
            unknown={name for name, place in places.items() if place is not None and place not in expected},
            misshapen={name for name, place in known.items() if shapes[name] != expected[place]},
            missing=set(expected) - set(known.values()),
        )

    def captured(self, depth: int) -> list[int]:
        """Target layers whose outputs feed fc, in that order: an id names an output, read as the next layer's input."""
        ids = (self.config.get(NESTED) or {}).get(IDS)
        inputs = [2, depth // 2, depth - 3] if ids is None else [i + 1 for i in ids]
        return [i - 1 for i in range(depth) if i in inputs]


class VLLM(SGLang):
    """Maps d2t to a parameter of its own; all but the head and that one live below `model`."""

    vocabulary, ties_head = "draft_id_to_target_id", False

    def place(self, name: str) -> str | None:
        if "t2d" in name:
            return None
        if "d2t" in name:
            return name.replace("d2t", self.vocabulary)
        name = name.replace("midlayer.", "layers.0.")
        return shard(name if "lm_head" in name else f"model.{name}")

    def captured(self, depth: int) -> list[int]:
        """An id names an input: 0 the embedding, `depth` the last layer's output."""
        inputs = self.config.get(IDS) or [2, depth // 2, depth - 3]
        return [i - 1 for i in range(depth + 1) if i in inputs]


servers = pytest.mark.parametrize("server", [SGLang, VLLM])


@pytest.fixture
def checkpoint(tmp_path):
    save_draft(tmp_path, random_draft(random_target(), KEPT), torch.float32)
    return tmp_path


def save_for_depth(folder: Path, depth: int, chosen: tuple[int, ...] | None) -> tuple[int, ...]:
    """A checkpoint for a target of `depth` layers; the layers it reads."""
    layers = aux_layers(depth, chosen)
    target = random_target().model.config
    target.num_hidden_layers = depth
    save_draft(folder, Draft(draft_config(target, 8, layers), *vocab_maps(KEPT, 40)), torch.float32)
    return layers


@servers
def test_every_tensor_goes_where_it_fits_and_nothing_is_left_unfilled(checkpoint, server):
    loading = server(checkpoint).load()
    assert (loading.unknown, loading.misshapen, loading.missing) == (set(), set(), set())
    assert loading.ignored == {"t2d"}
    assert {name.removeprefix(LAYER): shape for name, shape in loading.filled.items()} == {
        "self_attn.qkv_proj.weight:q": (32, 32), "self_attn.qkv_proj.weight:k": (16, 32),
        "self_attn.qkv_proj.weight:v": (16, 32), "self_attn.o_proj.weight": (16, 32),
        "mlp.gate_up_proj.weight:gate": (24, 16), "mlp.gate_up_proj.weight:up": (24, 16),
        "mlp.down_proj.weight": (16, 24), "model.fc.weight": (16, 48), "model.norm.weight": (16,),
        "lm_head.weight": (8, 16), server.vocabulary: (8,),
    } | {f"{name}.weight": (16,) for name in NORMS}  # fmt: skip


@servers
@pytest.mark.parametrize(("depth", "chosen"), [(4, (0, 1, 2)), (8, None), (8, (1, 3, 6)), (36, None), (61, None)])
def test_a_server_captures_the_layers_that_the_draft_was_trained_on(tmp_path, server, depth, chosen):
    layers = save_for_depth(tmp_path, depth, chosen)
    assert server(tmp_path).captured(depth) == list(layers)


def test_the_embedding_is_left_to_the_target_whose_shape_it_has(checkpoint):
    served = SGLang(checkpoint)
    assert not any("embed" in name for name in served.tensors)
    assert (served.config["vocab_size"], served.config["hidden_size"]) == random_target().embed.weight.shape
    assert "target_hidden_size" not in served.config  # SGLang shares no embedding when it differs


def test_the_architecture_is_one_that_both_registries_know_and_no_variant_is_switched_on(checkpoint):
    config = SGLang(checkpoint).config
    assert config["max_position_embeddings"] == random_target().model.config.max_position_embeddings
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLMEagle3"], "llama")
    assert (config["num_hidden_layers"], config["hidden_act"]) == (1, "silu")
    assert config[NESTED]["use_aux_hidden_state"] is True
    switches = (
        "norm_before_residual", "norm_before_fc", "fc_norm", "use_aux_norm", "norm_output", "bias", "attention_bias",
        "qkv_bias", "mlp_bias", "logit_scale", "quantization_config", "speculators_model_type", "num_aux_hidden_states",
    )  # fmt: skip
    assert {name: config[name] for name in switches if config.get(name)} == {}
    assert not config[NESTED].get("norm_before_fc")


@servers
def test_a_misspelt_or_missing_tensor_is_noticed(checkpoint, server):
    whole = server(checkpoint)
    for name in sorted(set(whole.tensors) - {"t2d"}):
        misspelt, missing = server(checkpoint), server(checkpoint)
        misspelt.tensors[name[1:]] = misspelt.tensors.pop(name)
        missing.tensors.pop(name)
        assert (misspelt.load().unknown, misspelt.load().missing) == ({name[1:]}, {whole.place(name)})
        assert (missing.load().unknown, missing.load().missing) == (set(), {whole.place(name)})


@servers
def test_shapes_that_the_config_does_not_promise_are_noticed(checkpoint, server):
    served = server(checkpoint)
    served.config |= {"draft_vocab_size": 9, "num_key_value_heads": 4}
    served.tensors["fc.weight"] = torch.ones(16, 32)
    keys = {f"midlayer.self_attn.{name}_proj.weight" for name in "kv"}
    assert served.load().misshapen == {"fc.weight", "lm_head.weight", "d2t"} | keys


def test_a_tied_head_would_be_lost_in_sglang(checkpoint):
    served = SGLang(checkpoint)
    served.config["tie_word_embeddings"] = True
    assert served.load().unknown == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({NESTED: {IDS: [2, 18, 33]}}, [SGLang]),  # vLLM's numbers where SGLang reads
        ({IDS: [1, 17, 32]}, [VLLM]),  # and the reverse
        ({NESTED: {IDS: [1, 17, 40]}}, [SGLang]),  # a layer that is not there: one feature too few
        ({NESTED: {}, IDS: None}, []),  # without ids both take the rule, which this draft follows
    ],
)
def test_wrong_layer_ids_are_noticed(tmp_path, changes, wrong):
    layers = save_for_depth(tmp_path, 36, None)
    served = [SGLang(tmp_path), VLLM(tmp_path)]
    for server in served:
        server.config |= changes
    assert [type(server) for server in served if server.captured(36) != list(layers)] == wrong


class TransformersDraft:
    """The draft from config.json and model.safetensors with transformers' Llama modules, none of ours."""

    def __init__(self, folder: Path):
        config = AutoConfig.from_pretrained(folder, attn_implementation="eager")
        layer = LlamaDecoderLayer(config, layer_idx=0)
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(layer.self_attn, name)
            setattr(layer.self_attn, name, nn.Linear(2 * old.in_features, old.out_features, bias=False))
        layer.hidden_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.modules = nn.ModuleDict({
            "fc": nn.Linear(3 * config.hidden_size, config.hidden_size, bias=False),
            "midlayer": layer,
            "norm": LlamaRMSNorm(config.hidden_size, config.rms_norm_eps),
            "lm_head": nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False),
        })  # fmt: skip
        tensors = load_file(folder / "model.safetensors")
        self.d2t, _ = tensors.pop("d2t"), tensors.pop("t2d")
        self.modules.load_state_dict(tensors)
        self.rotary, self.cache = LlamaRotaryEmbedding(config), DynamicCache(config=config)

    def step(self, embedding: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        """Rows [M, H] after those of earlier calls, to [M, H]."""
        layer, hidden = self.modules["midlayer"], hidden[None]
        seen = torch.arange(int(positions[-1]) + 1)
        mask = torch.zeros(len(positions), len(seen)).masked_fill(seen > positions[:, None], float("-inf"))
        x = torch.cat((layer.input_layernorm(embedding[None]), layer.hidden_norm(hidden)), dim=-1)
        attended, _ = layer.self_attn(x, self.rotary(hidden, positions[None]), mask[None, None], self.cache)
        hidden = hidden + attended
        return (hidden + layer.mlp(layer.post_attention_layernorm(hidden)))[0]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.modules["lm_head"](self.modules["norm"](hidden))


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", ROPES)
def test_transformers_alone_drafts_the_same_two_tokens(tmp_path, kind):
    target, length = random_target(), 40  # past yarn's 32 original positions
    target.model.config.rope_parameters = ROPES[kind]
    save_draft(tmp_path, random_draft(target, KEPT), torch.float32)
    ours, theirs = load_draft(tmp_path, torch.float32), TransformersDraft(tmp_path)
    generator, positions = torch.Generator().manual_seed(3), torch.arange(length + 1)
    features = torch.randn(length, 48, generator=generator)
    embedding = target.embed(torch.randint(40, (length,), generator=generator))
    first = ours.step(embedding, ours.fc(features), positions[:-1], causal)
    first_too = theirs.step(embedding, theirs.modules["fc"](features), positions[:-1])
    torch.testing.assert_close(theirs.logits(first_too), ours.logits(first), atol=1e-5, rtol=0)

    choice = theirs.logits(first_too[-1:]).argmax(-1)
    token = choice + theirs.d2t[choice]
    assert (token, theirs.rotary.config.rope_parameters) == (KEPT[choice], ROPES[kind])
    embedding = torch.cat((embedding, target.embed(token)))
    second = ours.step(embedding, torch.cat((ours.fc(features), first[-1:])), positions, causal)[-1:]
    second_too = theirs.step(embedding[-1:], first_too[-1:], positions[-1:])
    torch.testing.assert_close(theirs.logits(second_too), ours.logits(second), atol=1e-5, rtol=0)
