"""Causal attention of packed sequences for transformers' models, without the mask matrix that they would build."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from specforge.model.flash import Places, kernel_for
from specforge.model.packing import Packing

NAME = "specforge_packed"
# Models whose attention is softmax over all earlier tokens and nothing else. Others (windows, sinks, soft caps, latent
# heads) keep transformers' own, which tells packed sequences by their positions.
ORDINARY = {"llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}

_current: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def packed_as(packing: Packing) -> Iterator[None]:
    """Within it, models whose attention is NAME take one row of tokens as the sequences of `packing`."""
    token = _current.set(packing)
    try:
        yield
    finally:
        _current.reset(token)


def is_ordinary(config: Any) -> bool:
    """Whether a text config's attention may be replaced by ours."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return config.model_type in ORDINARY and kinds == {"full_attention"} and not windowed


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _current.get() else sdpa_mask(*args, **kwargs)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    packing = _current.get()
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale, kernel = kwargs.get("scaling") or query.shape[-1] ** -0.5, kernel_for(query)
    out, _, _ = kernel.attend(q, kernel.prepare(k, v, packing, q.shape[1]), Places(None, packing), scale)
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
