"""Attention over unrolled draft steps: causal to step 0, to oneself in every later step.

At step i the query of position t sees the step-0 keys of positions <= t and, from each step 1..i, the key of
t alone (EAGLE-3, training-time test). The causal part is an ordinary flash attention; the i diagonal terms are
merged into it by log-sum-exp. No mask matrix, no concatenated keys.

Shapes: B batch, H query heads, G key-value heads, T positions, D head size, S later steps.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _sum_heads(grad: Tensor, kv_heads: int) -> Tensor:
    if grad.shape[1] == kv_heads:
        return grad
    return grad.unflatten(1, (kv_heads, -1)).sum(2)


class _CpuFlash:
    """The CPU's flash attention; the one way in public builds to its log-sum-exp and to a backward from a given one."""

    forward = staticmethod(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default)
    backward = staticmethod(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default)

    @classmethod
    def attend(cls, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = cls.forward(q, k, v, 0.0, True, scale=scale)
        return out, lse

    @classmethod
    def gradients(cls, grad, q, k, v, out, lse, scale) -> tuple[Tensor, Tensor, Tensor]:
        return cls.backward(grad, q, k, v, out, lse, 0.0, True, scale=scale)


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


class _UnrolledAttention(torch.autograd.Function):
    """Forward merges flash output and diagonal terms; backward gives flash the merged output and log-sum-exp.

    With the merged log-sum-exp L and output O, flash's own backward yields exp(s - L) * (dO.v - dO.O), which is
    exactly the causal part of the whole softmax's gradient. The diagonal part is the same formula by hand.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, later_k: Tensor | None, later_v: Tensor | None):
        scale = q.shape[-1] ** -0.5
        full_k, full_v = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
        out, lse = _kernel(q).attend(q, full_k, full_v, scale)
        if later_k is not None:
            scores = _diagonal(q, later_k) * scale
            total = torch.logaddexp(lse, scores.logsumexp(0))
            out = out * (lse - total).exp().to(out.dtype)[..., None]
            out = out + _weighted((scores - total).exp().to(out.dtype), later_v)
            lse = total
        ctx.save_for_backward(q, k, v, later_k, later_v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, later_k, later_v, out, lse = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        full_k, full_v = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
        grad_q, grad_k, grad_v = _kernel(q).gradients(grad, q, full_k, full_v, out, lse, scale)
        grad_k, grad_v = _sum_heads(grad_k, k.shape[1]), _sum_heads(grad_v, v.shape[1])
        if later_k is None:
            return grad_q, grad_k, grad_v, None, None
        weights = (_diagonal(q, later_k) * scale - lse).exp()
        delta = (grad.float() * out.float()).sum(-1)
        by_score = (weights * (_diagonal(grad, later_v) - delta) * scale).to(q.dtype)
        grad_q = grad_q + _weighted(by_score, later_k)
        return grad_q, grad_k, grad_v, _spread(by_score, q, k.shape[1]), _spread(weights.to(q.dtype), grad, v.shape[1])


def _diagonal(x: Tensor, later: Tensor) -> Tensor:
    """Dot products of x [B,H,T,D] with each later step's own row [S,B,G,T,D], fp32 [S,B,H,T]."""
    grouped = x.unflatten(1, (later.shape[2], -1))
    return (grouped * later.unsqueeze(3)).float().sum(-1).flatten(2, 3)


def _weighted(weights: Tensor, later: Tensor) -> Tensor:
    """Sum over steps of weights [S,B,H,T] times rows [S,B,G,T,D], [B,H,T,D]."""
    grouped = weights.unflatten(2, (later.shape[2], -1))
    return (grouped.unsqueeze(-1) * later.unsqueeze(3)).sum(0).flatten(1, 2)


def _spread(weights: Tensor, x: Tensor, kv_heads: int) -> Tensor:
    """weights [S,B,H,T] times x [B,H,T,D], summed over the heads of a key-value group, [S,B,G,T,D]."""
    product = weights.unsqueeze(-1) * x
    return product.unflatten(2, (kv_heads, -1)).sum(3)


def unrolled_attention(q: Tensor, k: Tensor, v: Tensor, later: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention of one unrolled step.

    Args:
        q: queries of this step, [B, H, T, D], rotated.
        k, v: keys and values of step 0, [B, G, T, D]; H is a multiple of G.
        later: keys and values of steps 1..i, this step's last, [B, G, T, D] each; empty at step 0.

    Returns:
        [B, H, T, D], differentiable once in every argument.
    """
    later_k = torch.stack([key for key, _ in later]) if later else None
    later_v = torch.stack([value for _, value in later]) if later else None
    return _UnrolledAttention.apply(q, k, v, later_k, later_v)
