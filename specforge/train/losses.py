"""The on-policy distillation loss, exact over the whole draft vocabulary, fused with the draft's head.

q = softmax of the draft's logits z / temperature over the draft vocabulary Vd; p = the target's softmax at the same
temperature over its whole vocabulary, read at Vd (it sums to <= 1); p~ = p renormalised over Vd.

    cross-entropy  ce    = - sum p~ log q                       (Hinton et al. 2015)
    reverse KL     rkl   = sum q (log q - log p~)               (Gu et al. 2023, MiniLLM; Agarwal et al. 2023, GKD)
    hinge          hinge = sum q max(0, log q - log p)          over-confidence: where q > p, a token may be rejected

The gradient of each with respect to z is known in closed form, so it is formed while the logits are there:

    d ce / dz = q - p~      d rkl / dz = q (log(q/p~) - rkl)      d hinge / dz = q (u - sum q u), u = [r > 0] (r + 1)

with r = log(q/p), all divided by the temperature. The one-sample estimate log q(y) - log p(y) of the reverse KL has
an expected gradient of zero and is not offered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 22  # logits held at once: 16 MiB of fp32


@dataclass(frozen=True)
class LossWeights:
    """An ablation's row: weights of the three terms."""

    lambda_ce: float = 0.0
    lambda_rkl: float = 0.0
    beta_hinge: float = 0.0


@dataclass
class Terms:
    """Sums over rows, detached: every term whether weighted or not, and the three acceptance rates.

    accept_sampled = sum min(p, q); accept_greedy = [argmax q = argmax p] (T=0 verification);
    accept_top1 = p(argmax q) (a greedy draft under sampled verification).
    """

    ce: Tensor
    rkl: Tensor
    hinge: Tensor
    accept_sampled: Tensor
    accept_greedy: Tensor
    accept_top1: Tensor

    @classmethod
    def zero(cls) -> "Terms":
        return cls(*(torch.zeros(()) for _ in fields(cls)))

    def __add__(self, other: "Terms") -> "Terms":
        return Terms(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Teacher:
    """The target's distribution at N supervised positions.

    `log_p` fp32 [N, Vd]; `log_mass` fp32 [N, 1], the log of what p gives to the draft vocabulary; `top` int64 [N],
    the draft id of the target's argmax, -1 when that token is outside.
    """

    log_p: Tensor
    log_mass: Tensor
    top: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Teacher":
        return Teacher(self.log_p[rows], self.log_mass[rows], self.top[rows])

    @classmethod
    def cat(cls, parts: Sequence["Teacher"]) -> "Teacher":
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def teacher_from_logits(logits: Tensor, target_ids: Tensor, temperature: float) -> Teacher:
    """Whole-vocabulary logits [N, V] and the target id of each draft id [Vd] to the Teacher at `temperature`."""
    scaled = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    log_p = scaled[:, target_ids] - scaled.logsumexp(-1, keepdim=True)
    return Teacher(log_p, log_p.logsumexp(-1, keepdim=True), _draft_id(logits.argmax(-1), target_ids))


def _draft_id(ids: Tensor, target_ids: Tensor) -> Tensor:
    place = torch.searchsorted(target_ids, ids).clamp_max(len(target_ids) - 1)
    return torch.where(target_ids[place] == ids, place, -1)


def _terms(log_q: Tensor, q: Tensor, log_p: Tensor, log_p_kept: Tensor, top: Tensor) -> Terms:
    p, best = log_p.exp(), log_q.argmax(-1)
    return Terms(
        ce=-(log_p_kept.exp() * log_q).sum(),
        rkl=(q * (log_q - log_p_kept)).sum(),
        hinge=(q * (log_q - log_p).clamp_min(0)).sum(),
        accept_sampled=torch.minimum(p, q).sum(),
        accept_greedy=(best == top).sum(),
        accept_top1=p.gather(1, best[:, None]).sum(),
    )


def _loss_and_gradient(log_q: Tensor, q: Tensor, log_p: Tensor, log_p_kept: Tensor, w: LossWeights):
    """Loss of each row [n] and its gradient by z * temperature [n, Vd]."""
    loss, gradient = 0.0, 0.0
    if w.lambda_ce:
        p_kept = log_p_kept.exp()
        loss = loss - w.lambda_ce * (p_kept * log_q).sum(-1)
        gradient = gradient + w.lambda_ce * (q - p_kept)
    if w.lambda_rkl:
        ratio = log_q - log_p_kept
        divergence = (q * ratio).sum(-1, keepdim=True)
        loss = loss + w.lambda_rkl * divergence[:, 0]
        gradient = gradient + ratio.sub_(divergence).mul_(q).mul_(w.lambda_rkl)
    if w.beta_hinge:
        excess = log_q - log_p
        over = (excess > 0).to(q.dtype)
        weighted = q * excess * over
        loss = loss + w.beta_hinge * weighted.sum(-1)
        pull = weighted + q * over
        gradient = gradient + w.beta_hinge * (pull - q * pull.sum(-1, keepdim=True))
    return loss, gradient


class _FusedHead(torch.autograd.Function):
    """Linear + loss in chunks of rows: no [N, Vd] tensor outlives its chunk, the backward is two stored gradients."""

    @staticmethod
    def forward(
        ctx, hidden, weight, teacher: Teacher, weights: LossWeights, temperature: float, terms: list[Terms] | None
    ):
        rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
        grad_hidden = torch.empty_like(hidden)
        wide = teacher.log_p.dtype
        grad_weight = torch.zeros_like(weight, dtype=wide)
        total = hidden.new_zeros((), dtype=wide)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            log_q = torch.log_softmax((hidden[part] @ weight.T).to(wide) / temperature, dim=-1)
            q, known = log_q.exp(), teacher[part]
            log_p_kept = known.log_p - known.log_mass
            loss, by_logits = _loss_and_gradient(log_q, q, known.log_p, log_p_kept, weights)
            total += loss.sum()
            if terms is not None:
                terms.append(_terms(log_q, q, known.log_p, log_p_kept, known.top))
            by_logits = (by_logits / temperature).to(hidden.dtype)
            grad_hidden[part] = by_logits @ weight
            grad_weight += by_logits.T @ hidden[part]  # accumulated wide
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad.to(grad_weight.dtype), *[None] * 4


def distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    teacher: Teacher,
    weights: LossWeights,
    temperature: float,
    terms: list[Terms] | None = None,
) -> Tensor:
    """Sum over N rows of the weighted loss of the draft's head, a scalar.

    Args:
        hidden: normed draft states, [N, H].
        weight: the head, [Vd, H].
        teacher: the target at the same N positions.
        weights: of the terms.
        temperature: of both distributions; should match the verification's.
        terms: when given, every term's sum is appended to it (costs extra passes; for logging).
    """
    return _FusedHead.apply(hidden, weight, teacher, weights, temperature, terms)
