"""Attention over unrolled draft steps: causal to step 0, to oneself in every later step.

At step i the query of position t sees the step-0 keys of positions <= t and, from each step 1..i, the key of
t alone (EAGLE-3, training-time test). The causal part is an ordinary flash attention; the i diagonal terms are
merged into it by log-sum-exp. No mask matrix, no concatenated keys.

Only some positions are unrolled (those that a loss needs), so queries and later keys are rows, M of the B*T places.

Shapes: B batch, T positions, M rows, H query heads, G key-value heads, D head size, S later steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclass(frozen=True)
class Places:
    """Where M rows sit in a batch: `index` int64 [M] counts through [B, T]."""

    index: Tensor
    batch: int
    length: int

    def spread(self, rows: Tensor) -> Tensor:
        """Rows [M, H, ...] to [B, H, T, ...], zero where there is no row."""
        grid = rows.new_zeros(self.batch * self.length, *rows.shape[1:])
        grid[self.index] = rows
        return grid.unflatten(0, (self.batch, self.length)).transpose(1, 2)

    def gather(self, grid: Tensor) -> Tensor:
        """Inverse of `spread`: [B, H, T, ...] to rows [M, H, ...]."""
        return grid.transpose(1, 2).flatten(0, 1)[self.index]


class _CpuFlash:
    """The CPU's flash attention; the one way to its log-sum-exp, and to a backward from a given one, is private."""

    _forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    _backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

    @classmethod
    def attend(cls, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Causal attention of [B, H, T, D] tensors and its log-sum-exp [B, H, T]."""
        return cls._forward(q, k, v, 0.0, True, scale=scale)

    @classmethod
    def gradients(cls, grad, q, k, v, out, lse, scale) -> tuple[Tensor, Tensor, Tensor]:
        """By q, k and v, for the softmax that `lse` normalises and its whole output `out`."""
        return cls._backward(grad, q, k, v, out, lse, 0.0, True, scale=scale)


class _Plain:
    """The same two operations by matrix products, for devices and types without such a kernel; O(T^2) memory."""

    @staticmethod
    def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).float() * scale
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(future, float("-inf"))

    @classmethod
    def attend(cls, q, k, v, scale):
        scores = cls._scores(q, k, scale)
        lse = scores.logsumexp(-1)
        return (scores - lse[..., None]).exp().to(v.dtype) @ v, lse

    @classmethod
    def gradients(cls, grad, q, k, v, out, lse, scale):
        weights = (cls._scores(q, k, scale) - lse[..., None]).exp()
        delta = (grad.float() * out.float()).sum(-1, keepdim=True)
        by_score = (weights * ((grad @ v.transpose(-1, -2)).float() - delta) * scale).to(q.dtype)
        return by_score @ k, by_score.transpose(-1, -2) @ q, weights.to(v.dtype).transpose(-1, -2) @ grad


def _kernel(q: Tensor) -> type:
    return _CpuFlash if q.device.type == "cpu" else _Plain


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _sum_heads(grad: Tensor, kv_heads: int) -> Tensor:
    return grad if grad.shape[1] == kv_heads else grad.unflatten(1, (kv_heads, -1)).sum(2)


class _UnrolledAttention(torch.autograd.Function):
    """Forward merges flash output and diagonal terms; backward gives flash the merged output and log-sum-exp.

    With the merged log-sum-exp L and output O, flash's own backward yields exp(s - L) * (dO.v - dO.O), which is
    exactly the causal part of the whole softmax's gradient. The diagonal part is the same formula by hand.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, later_k, later_v, places: Places) -> Tensor:
        scale = q.shape[-1] ** -0.5
        heads = q.shape[1]
        grid, lse_grid = _kernel(q).attend(places.spread(q), _repeat_heads(k, heads), _repeat_heads(v, heads), scale)
        out, lse = places.gather(grid), places.gather(lse_grid)
        if later_k is not None:
            scores = _diagonal(q, later_k).mul_(scale)
            total = torch.logaddexp(lse, scores.logsumexp(0))
            out = out * (lse - total).exp().to(out.dtype)[..., None]
            out += _weighted((scores - total).exp().to(out.dtype), later_v)
            lse = total
        ctx.places, ctx.scale = places, scale
        ctx.save_for_backward(q, k, v, later_k, later_v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, later_k, later_v, out, lse = ctx.saved_tensors
        places, scale, heads = ctx.places, ctx.scale, q.shape[1]
        grids = [places.spread(rows) for rows in (grad, q, out, lse)]
        grad_grid, q_grid, out_grid, lse_grid = (grid.contiguous() for grid in grids)
        keys, values = _repeat_heads(k, heads), _repeat_heads(v, heads)
        by_q, by_k, by_v = _kernel(q).gradients(grad_grid, q_grid, keys, values, out_grid, lse_grid, scale)
        by_q, by_k, by_v = places.gather(by_q), _sum_heads(by_k, k.shape[1]), _sum_heads(by_v, v.shape[1])
        if later_k is None:
            return by_q, by_k, by_v, None, None, None
        weights = _diagonal(q, later_k).mul_(scale).sub_(lse).exp_()
        delta = (grad.float() * out.float()).sum(-1)
        by_score = (weights * (_diagonal(grad, later_v) - delta) * scale).to(q.dtype)
        by_q = by_q + _weighted(by_score, later_k)
        kv_heads = k.shape[1]
        return by_q, by_k, by_v, _outer(by_score, q, kv_heads), _outer(weights.to(q.dtype), grad, kv_heads), None


def _diagonal(x: Tensor, later: Tensor) -> Tensor:
    """Dot products of x [M,H,D] with each later step's row of the same place [S,M,G,D]: fp32 [S,M,H]."""
    grouped = x.unflatten(1, (later.shape[2], -1))
    return torch.einsum("mgrd,smgd->smgr", grouped, later).flatten(2).float()


def _weighted(weights: Tensor, later: Tensor) -> Tensor:
    """Sum over steps of weights [S,M,H] times rows [S,M,G,D]: [M,H,D]."""
    grouped = weights.unflatten(2, (later.shape[2], -1))
    return torch.einsum("smgr,smgd->mgrd", grouped, later).flatten(1, 2)


def _outer(weights: Tensor, x: Tensor, kv_heads: int) -> Tensor:
    """weights [S,M,H] times x [M,H,D], summed over the heads of a key-value group: [S,M,G,D]."""
    grouped, rows = weights.unflatten(2, (kv_heads, -1)), x.unflatten(1, (kv_heads, -1))
    return torch.einsum("smgr,mgrd->smgd", grouped, rows)


def unrolled_attention(q: Tensor, k: Tensor, v: Tensor, later: list[tuple[Tensor, Tensor]], places: Places) -> Tensor:
    """Attention of one unrolled step, differentiable once in every tensor.

    Args:
        q: rotated queries of this step's rows, [M, H, D].
        k, v: keys and values of step 0 at every place, [B, G, T, D]; H is a multiple of G.
        later: keys and values of the rows in steps 1..i, this step's last, [M, G, D] each; empty at step 0.
        places: where the rows sit.

    Returns:
        [M, H, D].
    """
    later_k = torch.stack([key for key, _ in later]) if later else None
    later_v = torch.stack([value for _, value in later]) if later else None
    return _UnrolledAttention.apply(q, k, v, later_k, later_v, places)
