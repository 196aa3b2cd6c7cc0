"""The losses of specforge.train.losses as one Triton kernel: a program a row, three passes over it, no temporaries."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specforge.train.losses import FIGURES, LossWeights, Teacher

BLOCK = 2048
FAR = tl.constexpr(-1.0e30)  # stands for minus infinity where infinities would make 0 * inf


@triton.jit
def _log_sum_exp(z, size, inverse, BLOCK: tl.constexpr):
    """Of z / temperature over a row, and where its largest entry is."""
    lanes = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], FAR, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for start in range(0, size, BLOCK):
        at = start + lanes
        x = tl.load(z + at, mask=at < size, other=FAR).to(tl.float32) * inverse
        larger = tl.maximum(top, x)
        where = tl.where(x > top, at, where)
        total = total * tl.exp(top - larger) + tl.exp(x - larger)
        top = larger
    best = tl.max(top, 0)
    first = tl.min(tl.where(top == best, where, size), 0)
    return best + tl.log(tl.sum(total * tl.exp(top - best), 0)), first


@triton.jit
def _read(z, t, at, size, inverse, log_z, log_norm, log_kept):
    """log q, log p, log p~ of a block."""
    inside = at < size
    x = tl.load(z + at, mask=inside, other=FAR).to(tl.float32) * inverse
    y = tl.load(t + at, mask=inside, other=FAR).to(tl.float32) * inverse
    return tl.where(inside, x - log_z, FAR), tl.where(inside, y - log_norm, FAR), tl.where(inside, y - log_kept, FAR)


@triton.jit
def _loss_rows(
    z_rows, t_rows, rows, scale, log_norms, log_norms_kept, tops, losses, told, size, inverse,
    ce, rkl, hinge, tv, lk_alpha, lk_lambda, eta, FIGURES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + program)
    z, t = z_rows + program * size, t_rows + row * size
    log_norm, log_kept_norm = tl.load(log_norms + row), tl.load(log_norms_kept + row)
    log_z, first = _log_sum_exp(z, size, inverse, BLOCK)
    lanes = tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.float32)
    cross, reverse, over, slope, overlap, below, negentropy = zero, zero, zero, zero, zero, zero, zero
    for start in range(0, size, BLOCK):
        log_q, log_p, log_kept = _read(z, t, start + lanes, size, inverse, log_z, log_norm, log_kept_norm)
        q, p, kept = tl.exp(log_q), tl.exp(log_p), tl.exp(log_kept)
        r = log_q - log_p
        cross -= kept * log_q
        negentropy += kept * log_kept
        reverse += q * (log_q - log_kept)
        over += tl.where(r > 0, q * r, 0.0)
        slope += tl.where(r > 0, q * (r + 1), 0.0)
        overlap += tl.minimum(p, q)
        below += tl.where(r < 0, q, 0.0)
    cross, reverse, over, slope = tl.sum(cross, 0), tl.sum(reverse, 0), tl.sum(over, 0), tl.sum(slope, 0)
    alpha, below, negentropy = tl.maximum(tl.sum(overlap, 0), 1.0e-37), tl.sum(below, 0), tl.sum(negentropy, 0)
    blend = tl.exp(-eta * alpha)
    strength = tv + lk_alpha / alpha + lk_lambda * (1 - blend)
    push = ce + lk_lambda * blend
    loss = push * cross + rkl * reverse + hinge * over + (tv + lk_lambda * (1 - blend)) * (1 - alpha)
    loss += lk_lambda * blend * negentropy - lk_alpha * tl.log(alpha)
    weight = tl.load(scale + program)
    tl.store(losses + program, loss * weight)
    if FIGURES:
        out = told + program * 7
        tl.store(out, cross)
        tl.store(out + 1, reverse)
        tl.store(out + 2, over)
        tl.store(out + 3, -tl.log(alpha))
        tl.store(out + 4, alpha)
        tl.store(out + 5, tl.where(first == tl.load(tops + row), 1.0, 0.0))
        tl.store(out + 6, tl.exp(tl.load(t + first).to(tl.float32) * inverse - log_norm))
    mean = rkl * reverse + hinge * slope - strength * below
    for start in range(0, size, BLOCK):
        at = start + lanes
        log_q, log_p, log_kept = _read(z, t, at, size, inverse, log_z, log_norm, log_kept_norm)
        q, kept = tl.exp(log_q), tl.exp(log_kept)
        r = log_q - log_p
        pull = rkl * (log_q - log_kept) + hinge * tl.where(r > 0, r + 1, 0.0) - strength * tl.where(r < 0, 1.0, 0.0)
        gradient = (q * (pull - mean) + push * (q - kept)) * weight * inverse
        tl.store(z + at, gradient.to(z_rows.dtype.element_ty), mask=at < size)


def loss_rows(
    logits: Tensor, teacher: Teacher, rows: Tensor, scale: Tensor, weights: LossWeights, told: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scaled loss of n rows, a scalar, and its gradient by `logits` [n, Vd], written over them.

    `rows` int64 [n] picks the teacher's rows, `scale` fp32 [n]; `told` fp32 [n, 7] is filled with FIGURES when given.
    """
    assert logits.is_contiguous()
    assert teacher.logits.is_contiguous()
    losses = torch.empty(len(logits), device=logits.device)
    w = weights
    _loss_rows[(len(logits),)](
        logits, teacher.logits, rows, scale, teacher.log_norm, teacher.log_norm_kept, teacher.top, losses,
        losses if told is None else told, logits.shape[1], 1 / teacher.temperature,
        w.lambda_ce, w.lambda_rkl, w.beta_hinge, w.lambda_tv, w.lambda_lk_alpha, w.lambda_lk_lambda, w.lk_eta,
        FIGURES=told is not None, BLOCK=min(BLOCK, triton.next_power_of_2(logits.shape[1])), num_warps=8,
    )  # fmt: skip
    return losses.sum(), logits


assert len(FIGURES) == 7  # the kernel stores them by number
