"""The draft's checkpoint: config.json and model.safetensors as SGLang and vLLM load them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig

from specforge.errors import UserError
from specforge.files import atomic_path, read_json, write_json
from specforge.model.draft import Draft


def draft_config(target: Any, draft_vocab_size: int, layers: tuple[int, int, int]) -> LlamaConfig:
    """Shapes of the draft from the target's config; the layer ids in both consumers' conventions.

    SGLang reads the nested ids and adds one (they name outputs of layers), vLLM reads the top-level ids as they
    are (they name inputs of layers).
    """
    config = target.get_text_config()
    rope = dict(config.rope_parameters)
    return LlamaConfig(
        architectures=["LlamaForCausalLMEagle3"],
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        num_hidden_layers=1,
        hidden_act="silu",
        rms_norm_eps=config.rms_norm_eps,
        initializer_range=config.initializer_range,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=rope,
        vocab_size=config.vocab_size,
        draft_vocab_size=draft_vocab_size,
        tie_word_embeddings=False,
        attention_bias=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        eagle_config={"eagle_aux_hidden_state_layer_ids": list(layers), "use_aux_hidden_state": True},
        eagle_aux_hidden_state_layer_ids=[layer + 1 for layer in layers],
    )


def draft_tensors(draft: Draft, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a checkpoint; the target's embedding is not among them, the server shares it."""
    return {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        for name, tensor in draft.state_dict().items()
    }


def save_draft(folder: Path, draft: Draft, dtype: torch.dtype) -> None:
    """Writes config.json and model.safetensors, each atomically, weights first."""
    with atomic_path(folder / "model.safetensors") as partial:
        save_file(draft_tensors(draft, dtype), partial, metadata={"format": "pt"})
    rope = dict(draft.config.rope_parameters)
    write_json(
        folder / "config.json",
        draft.config.to_dict()
        | {
            "model_type": "llama",
            "dtype": str(dtype).removeprefix("torch."),
            # transformers 5 keeps these two in rope_parameters alone; servers on transformers 4 read them here
            "rope_theta": rope["rope_theta"],
            "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        },
    )


def load_draft(folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> Draft:
    """Reads a checkpoint back. Raises UserError for a missing file or any missing, unknown or misshapen tensor."""
    content = read_json(folder / "config.json")
    config = LlamaConfig.from_dict({k: v for k, v in content.items() if k not in ("rope_theta", "rope_scaling")})
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing; run the rule run_training.")
    try:
        tensors = load_file(weights)
        draft = Draft(config, tensors["d2t"], tensors["t2d"])
        draft.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"{weights} does not hold this draft ({error}); delete it and run again.") from None
    return draft.to(device=device, dtype=dtype).eval().requires_grad_(False)


def aux_layers_of(config: LlamaConfig) -> tuple[int, ...]:
    """Target layers whose outputs a checkpoint reads."""
    return tuple(config.eagle_config["eagle_aux_hidden_state_layer_ids"])
