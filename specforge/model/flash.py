"""Causal attention within packed sequences, with its log-sum-exp, and the backward from a given log-sum-exp.

The public interfaces give either no log-sum-exp or no backward that takes one, so the kernels are called by the
names that PyTorch's own attention calls them by.

Shapes: N packed tokens, M of them asking, H query heads, G key-value heads (H is a multiple of G), D head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specforge.model.packing import Packing


@dataclass(frozen=True)
class Places:
    """The M tokens of a packing that ask: `index` int64 [M], ascending; None for all of them."""

    index: Tensor | None
    packing: Packing


class _Grid:
    """Kernels over padded grids [S, H, T, D]: rows are spread into one and gathered again."""

    @staticmethod
    def prepare(k: Tensor, v: Tensor, packing: Packing, heads: int) -> tuple[Tensor, Tensor]:
        """Keys and values [N, G, D] as the kernel takes them; once for all queries that meet them."""
        return tuple(_repeat_heads(packing.spread(x), heads) for x in (k, v))

    @classmethod
    def attend(
        cls, q: Tensor, prepared: tuple[Tensor, Tensor], places: Places, scale: float
    ) -> tuple[Tensor, Tensor, Any]:
        """q [M, H, D] to outputs [M, H, D], log-sum-exp fp32 [M, H], and what backward needs."""
        packing = places.packing
        out, lse = cls._attend(packing.spread(q, places.index), *prepared, scale)
        return packing.gather(out, places.index), packing.gather(lse, places.index), None

    @classmethod
    def gradients(cls, grad, q, prepared, kv_heads: int, out, lse, places: Places, scale: float, state: Any):
        """By q [M, H, D], k and v [N, G, D], for the softmax that `lse` normalises and its whole output `out`."""
        packing = places.packing
        spread = [packing.spread(rows, places.index).contiguous() for rows in (grad, q, out, lse)]
        by_q, by_k, by_v = cls._gradients(spread[0], spread[1], *prepared, *spread[2:], scale)
        by_k, by_v = (packing.gather(_sum_heads(x, kv_heads)) for x in (by_k, by_v))
        return packing.gather(by_q, places.index), by_k, by_v


class CpuFlash(_Grid):
    """PyTorch's flash attention for CPUs."""

    @staticmethod
    def _attend(q, k, v, scale):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, True, scale=scale)

    @staticmethod
    def _gradients(grad, q, k, v, out, lse, scale):
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        return backward(grad, q, k, v, out, lse, 0.0, True, scale=scale)


class Plain(_Grid):
    """By matrix products, for devices and types without such a kernel; O(T^2) memory."""

    @staticmethod
    def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).float() * scale
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(future, float("-inf"))

    @classmethod
    def _attend(cls, q, k, v, scale):
        scores = cls._scores(q, k, scale)
        lse = scores.logsumexp(-1)
        return (scores - lse[..., None]).exp().to(v.dtype) @ v, lse

    @classmethod
    def _gradients(cls, grad, q, k, v, out, lse, scale):
        weights = (cls._scores(q, k, scale) - lse[..., None]).exp()
        delta = (grad.float() * out.float()).sum(-1, keepdim=True)
        by_score = (weights * ((grad @ v.transpose(-1, -2)).float() - delta) * scale).to(q.dtype)
        return by_score @ k, by_score.transpose(-1, -2) @ q, weights.to(v.dtype).transpose(-1, -2) @ grad


class CudaFlash:
    """FlashAttention 2 over packed rows (Dao 2023), bf16 or fp16: no padding, key-value heads not repeated."""

    @staticmethod
    def _spread(rows: Tensor, places: Places) -> Tensor:
        if places.index is None:
            return rows.contiguous()
        return rows.new_zeros(len(places.packing.positions), *rows.shape[1:]).index_copy_(0, places.index, rows)

    @staticmethod
    def _gather(rows: Tensor, places: Places) -> Tensor:
        return rows if places.index is None else rows.index_select(0, places.index)

    @staticmethod
    def prepare(k, v, packing, heads):
        return k.contiguous(), v.contiguous()

    @classmethod
    def attend(cls, q, prepared, places: Places, scale):
        starts, longest = places.packing.starts, places.packing.longest
        out, lse, seed, unused, _ = torch.ops.aten._flash_attention_forward.default(
            cls._spread(q, places), *prepared, starts, starts, longest, longest, 0.0, True, False, scale=scale
        )
        return cls._gather(out, places), cls._gather(lse.T, places), (seed, unused)

    @classmethod
    def gradients(cls, grad, q, prepared, kv_heads, out, lse, places: Places, scale, state):
        starts, longest = places.packing.starts, places.packing.longest
        grad, q, out, lse = (cls._spread(rows, places) for rows in (grad, q, out, lse))
        by_q, by_k, by_v = torch.ops.aten._flash_attention_backward.default(
            grad,
            q,
            *prepared,
            out,
            lse.T.contiguous(),
            starts,
            starts,
            longest,
            longest,
            0.0,
            True,
            *state,
            scale=scale,
        )
        return cls._gather(by_q, places), by_k, by_v


def kernel_for(q: Tensor) -> type[_Grid] | type[CudaFlash]:
    """The fastest that takes tensors like `q`."""
    if q.device.type == "cpu":
        return CpuFlash
    return CudaFlash if q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] <= 256 else Plain


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _sum_heads(grad: Tensor, kv_heads: int) -> Tensor:
    return grad if grad.shape[1] == kv_heads else grad.unflatten(1, (kv_heads, -1)).sum(2)
