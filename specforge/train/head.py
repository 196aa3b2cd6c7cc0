"""The draft's head fused with the loss: logits live in chunks, their gradient is formed in the forward."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from specforge.train.losses import FIGURES, LossWeights, Teacher, figures, loss_and_gradient, tempered

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 28}
"""Logits held at once: about a core's cache, and 512 MiB of bf16."""


class _FusedHead(torch.autograd.Function):
    """Linear + loss in chunks of rows: no [R, Vd] tensor outlives its chunk, the backward is two stored gradients."""

    @staticmethod
    def forward(ctx, hidden, weight, teacher: Teacher, rows, scale, weights: LossWeights, told, learn: bool):
        size = max(1, CHUNK_ELEMENTS[hidden.device.type] // weight.shape[0])
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=teacher.log_norm.dtype)
        total = grad_weight.new_zeros(())
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = hidden[part] @ weight.T
            out = None if told is None else told[part]
            loss, by_logits = _chunk(logits, teacher, rows[part], scale[part], weights, out)
            total += loss
            if not learn:
                continue
            torch.mm(by_logits, weight, out=grad_hidden[part])
            _add_product(grad_weight, by_logits.T, hidden[part])
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad.to(grad_weight.dtype), *[None] * 6


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, added up in the type of `total`, which may be wider."""
    if a.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def _chunk(logits, teacher: Teacher, rows, scale, weights: LossWeights, told: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scaled loss of a chunk, a scalar, and its gradient by the logits [n, Vd]; fills `told` [n, 7] when given."""
    if logits.is_cuda:
        from specforge.train.kernels import loss_rows

        return loss_rows(logits, teacher, rows, scale, weights, told)
    temperature = teacher.temperature
    log_q = torch.log_softmax(tempered(logits, temperature), dim=-1)
    known = tempered(teacher.logits.index_select(0, rows), temperature)
    log_p = known - teacher.log_norm[rows, None] if weights.of_whole or told is not None else None
    log_kept = known.sub_(teacher.log_norm_kept[rows, None])  # a copy of the selected rows, so free to be changed
    if told is not None:
        told.copy_(figures(log_q, log_p, log_kept, teacher.top[rows]))
    loss, gradient = loss_and_gradient(log_q, log_p, log_kept, weights)
    by_logits = gradient.mul_((scale / temperature)[:, None]).to(logits.dtype)
    return torch.dot(loss, scale), by_logits


def distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    teacher: Teacher,
    rows: Tensor,
    scale: Tensor,
    weights: LossWeights,
    told: Tensor | None = None,
) -> Tensor:
    """Sum over R rows of scale * loss of the draft's head, a scalar in the type of `scale`.

    Args:
        hidden: normed draft states, [R, H].
        weight: the head, [Vd, H].
        teacher: the target at N positions; its temperature is both distributions'.
        rows: which of the N each state is to predict, int64 [R].
        scale: of each row's loss, fp32 [R].
        weights: of the terms.
        told: fp32 [R, 7], filled with each row's FIGURES when given (for logging).
    """
    learn = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _FusedHead.apply(hidden, weight, teacher, rows, scale, weights, told, learn)


def new_figures(like: Tensor, count: int) -> Tensor:
    """An empty [count, 7] beside `like`, for `told`."""
    return like.new_empty(count, len(FIGURES), dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)
