"""The frozen target as training and evaluation see it: features of three layers, final states, logits."""

from typing import Any

import torch
from torch import Tensor, nn

from specforge.errors import UserError
from specforge.model.packing import Packing
from specforge.target import packed


def default_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_head(config: Any) -> None:
    """Raises UserError for a target that changes its logits after the head, which the teacher would miss."""
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"target_model: this target's {name} is {getattr(config, name)}, which changes its logits after the "
                "head; such targets are not supported yet, choose another."
            )


def aux_layers(num_layers: int, chosen: tuple[int, ...] | None) -> tuple[int, int, int]:
    """The three target layers (0-based) whose outputs the draft reads: the EAGLE-3 rule 1, N/2-1, N-4 or `chosen`.

    Raises UserError when the target is too shallow for the rule, or for the chosen ids.
    """
    if chosen is None:
        if num_layers < 8:
            raise UserError(
                f"train.aux_layers: a target of {num_layers} layers is too shallow for the EAGLE-3 rule "
                "(1, N/2-1, N-4); name three layers, such as [0, 1, 2]."
            )
        return 1, num_layers // 2 - 1, num_layers - 4
    if chosen[-1] > num_layers - 2:
        raise UserError(
            f"train.aux_layers: layer {chosen[-1]} is not below the last of the target's {num_layers} layers "
            f"(0..{num_layers - 1}); choose ids up to {num_layers - 2}."
        )
    return chosen


class Target:
    """A frozen causal language model whose decoder layers' outputs are read as they pass."""

    def __init__(self, model: nn.Module, layers: tuple[int, ...]):
        self.model, self.layers = model, layers
        self.decoder = model.get_decoder()
        self.embed = model.get_input_embeddings()
        whole = _whole(self.embed.weight)
        if whole is not self.embed.weight:  # spread over processes, which ask for different tokens
            self.embed = nn.Embedding.from_pretrained(whole)
        self.head = model.get_output_embeddings()
        self.vocab_size = model.config.get_text_config().vocab_size
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = model.config.get_text_config().eos_token_id if ends is None else ends
        self.end_ids = torch.tensor([] if ends is None else ends, dtype=torch.int64).flatten()
        self._seen: dict[int, Tensor] = {}
        for layer in layers:
            self.decoder.layers[layer].register_forward_hook(self._keeper(layer))
        if packed.is_ordinary(model.config.get_text_config()):
            model.set_attn_implementation(packed.NAME)

    def _keeper(self, layer: int):
        def keep(module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
            self._seen[layer] = output if isinstance(output, Tensor) else output[0]

        return keep

    def __call__(self, ids: Tensor, cache: Any = None) -> tuple[Tensor, Tensor]:
        """int64 ids [B, T] (right-padded is fine: attention is causal) to features [B, T, 3H], final states [B, T, H].

        With a transformers cache, `ids` continue what it holds and it grows by T.
        """
        final = self.decoder(input_ids=ids, past_key_values=cache, use_cache=cache is not None).last_hidden_state
        return self._features(), final

    def packed(self, ids: Tensor, packing: Packing, cache: Any = None) -> tuple[Tensor, Tensor]:
        """int64 ids [N] of packed sequences to features [N, 3H], final states [N, H]; fills an empty `cache`."""
        with packed.packed_as(packing):
            seen = self.decoder(
                input_ids=ids[None],
                position_ids=packing.positions[None],
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return self._features()[0], seen.last_hidden_state[0]

    def branches(self, ids: Tensor, positions: Tensor, sees: Tensor, cache: Any) -> Tensor:
        """Final states [Q, H] of tokens int64 [Q] at `positions` [Q] that continue what `cache` holds.

        `sees` bool [Q, n + Q] says which of the n tokens there and of each other they attend to.
        """
        final = self.decoder(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=sees[None, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        self._seen.clear()
        return final[0]

    def head_rows(self, ids: Tensor) -> Tensor:
        """The head's rows of the tokens int64 [n], [n, H]."""
        weight = _whole(self.head.weight)
        return weight[ids.to(weight.device)]

    def _features(self) -> Tensor:
        return torch.cat([self._seen.pop(layer) for layer in self.layers], dim=-1)


def _whole(weight: Tensor) -> Tensor:
    """A weight that may be a DTensor, whole on this process; all processes must ask."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
