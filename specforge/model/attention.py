"""Attention over unrolled draft steps: causal to step 0, to oneself in every later step.

At step i the query of position t sees the step-0 keys of positions <= t and, from each step 1..i, the key of
t alone (EAGLE-3, training-time test). The causal part is an ordinary flash attention; the i diagonal terms are
merged into it by log-sum-exp. No mask matrix, no concatenated keys.

Only some positions are unrolled (those that a loss needs), so queries and later keys are rows, M of the N places.

Shapes: N places, M rows, H query heads, G key-value heads, D head size, S later steps.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from specforge.model.compiled import compiled
from specforge.model.flash import Places, kernel_for


@compiled
def _merge(q: Tensor, later_k: Tensor, later_v: Tensor, out: Tensor, lse: Tensor, scale: float):
    """Output and log-sum-exp of the causal part with the diagonal terms of later steps [S, M, G, D] merged in."""
    scores = _diagonal(q, later_k) * scale
    total = torch.logaddexp(lse, scores.logsumexp(0))
    merged = out.float() * (lse - total).exp()[..., None] + _weighted((scores - total).exp(), later_v)
    return merged.to(out.dtype), total


@compiled
def _diagonal_gradients(
    grad: Tensor, q: Tensor, later_k: Tensor, later_v: Tensor, out: Tensor, lse: Tensor, scale: float
):
    """What the diagonal terms add to q's gradient, fp32 [M, H, D], and their own by later keys and values."""
    weights = (_diagonal(q, later_k) * scale - lse).exp()
    delta = (grad.float() * out.float()).sum(-1)
    by_score = weights * (_diagonal(grad, later_v) - delta) * scale
    groups = later_k.shape[2]
    by_k, by_v = _outer(by_score, q, groups), _outer(weights, grad, groups)
    return _weighted(by_score, later_k), by_k.to(later_k.dtype), by_v.to(later_v.dtype)


# On a GPU the three below are fused into one pass each; einsum would round its sums to bf16. On a CPU einsum is faster.


def _diagonal(x: Tensor, later: Tensor) -> Tensor:
    """Dot products of x [M, H, D] with each later step's row of the same place [S, M, G, D]: fp32 [S, M, H]."""
    grouped = x.unflatten(1, (later.shape[2], -1))
    if not x.is_cuda:
        return torch.einsum("mgrd,smgd->smgr", grouped, later).flatten(2).float()
    return (grouped.float() * later[:, :, :, None].float()).sum(-1).flatten(2)


def _weighted(weights: Tensor, later: Tensor) -> Tensor:
    """Sum over steps of weights [S, M, H] times rows [S, M, G, D]: fp32 [M, H, D]."""
    grouped = weights.unflatten(2, (later.shape[2], -1))
    if not later.is_cuda:
        return torch.einsum("smgr,smgd->mgrd", grouped, later.to(weights.dtype)).flatten(1, 2)
    return (grouped[..., None] * later[:, :, :, None].float()).sum(0).flatten(1, 2)


def _outer(weights: Tensor, x: Tensor, kv_heads: int) -> Tensor:
    """weights [S, M, H] times x [M, H, D], summed over the heads of a key-value group: fp32 [S, M, G, D]."""
    grouped, rows = weights.unflatten(2, (kv_heads, -1)), x.unflatten(1, (kv_heads, -1)).to(weights.dtype)
    if not x.is_cuda:
        return torch.einsum("smgr,mgrd->smgd", grouped, rows)
    return (grouped[..., None] * rows).sum(3)


class _UnrolledAttention(torch.autograd.Function):
    """Forward merges flash output and diagonal terms; backward gives flash the merged output and log-sum-exp.

    With the merged log-sum-exp L and output O, flash's own backward yields exp(s - L) * (dO.v - dO.O), which is
    exactly the causal part of the whole softmax's gradient. The diagonal part is the same formula by hand.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, later_k, later_v, places: Places, prepared
    ) -> Tensor:
        ctx.scale, ctx.places, ctx.prepared, ctx.kv_heads = q.shape[-1] ** -0.5, places, prepared, k.shape[1]
        out, lse, ctx.state = kernel_for(q).attend(q, prepared, places, ctx.scale)
        if later_k is not None:
            out, lse = _merge(q, later_k, later_v, out, lse, ctx.scale)
        ctx.save_for_backward(q, later_k, later_v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, later_k, later_v, out, lse = ctx.saved_tensors
        grad = grad.contiguous()
        by_q, by_k, by_v = kernel_for(q).gradients(
            grad, q, ctx.prepared, ctx.kv_heads, out, lse, ctx.places, ctx.scale, ctx.state
        )
        if later_k is None:
            return by_q, by_k, by_v, None, None, None, None
        more, by_later_k, by_later_v = _diagonal_gradients(grad, q, later_k, later_v, out, lse, ctx.scale)
        return (by_q + more).to(q.dtype), by_k, by_v, by_later_k, by_later_v, None, None


class UnrolledAttention:
    """Remembers the keys and values of step 0 at every place, and of later steps at the unrolled rows.

    Call it step after step; differentiable once in every tensor.
    """

    def __init__(self, places: Places):
        self.places = places
        self.first: tuple[Tensor, Tensor] | None = None
        self.later: tuple[list[Tensor], list[Tensor]] = [], []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotated queries of the rows [M, H, D], with keys and values [N, G, D] at step 0 and [M, G, D] after it, to
        [M, H, D]. H is a multiple of G."""
        if self.first is None:
            self.first = (k, v)
            with torch.no_grad():
                self.prepared = kernel_for(q).prepare(k, v, self.places.packing, q.shape[1])
            return _UnrolledAttention.apply(q, k, v, None, None, self.places, self.prepared)
        for kept, new in zip(self.later, (k, v), strict=True):
            kept.append(new)
        later_k, later_v = map(torch.stack, self.later)
        return _UnrolledAttention.apply(q, *self.first, later_k, later_v, self.places, self.prepared)
