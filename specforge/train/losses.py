"""The on-policy distillation losses, exact over the whole draft vocabulary.

q = softmax of the draft's logits z / temperature over the draft vocabulary Vd; p = the target's softmax at the same
temperature over its whole vocabulary, read at Vd (it sums to <= 1); p~ = p renormalised over Vd; alpha = sum min(p, q).

    cross-entropy  ce    = - sum p~ log q                       (Hinton et al. 2015)
    reverse KL     rkl   = sum q (log q - log p~)               (Gu et al. 2023, MiniLLM; Agarwal et al. 2023, GKD)
    hinge          hinge = sum q max(0, log q - log p)          over-confidence: where q > p, a token may be rejected
    total variation   tv = 1 - alpha                            acceptance itself (Leviathan et al. 2023, Corollary 3.6)
    LK alpha       lk    = - log alpha                          (Samarin et al. 2026, "LK Losses", arXiv:2602.23881)
    LK lambda      w KL(p~ | q) + (1 - w) tv, w = exp(-eta alpha) without gradient                     (same paper)

The paper and SpecForge take w from the batch's mean alpha; here each position has its own, so that the loss of a
position does not depend on which others share its batch (else neither accumulation nor data parallelism is exact).

Every gradient by z / temperature has the form q (a - sum q a) + c (q - p~), formed while the logits are there:

    ce: c = 1    rkl: a = log(q/p~)    hinge: a = [r > 0] (r + 1)    tv: a = -[r < 0]    lk: a = -[r < 0] / alpha

with r = log(q/p). The one-sample estimate log q(y) - log p(y) of the reverse KL has an expected gradient of zero and
is not offered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from specforge.model.compiled import compiled

FIGURES = ("ce", "rkl", "hinge", "lk", "accept_sampled", "accept_greedy", "accept_top1")
"""What is reported of every row, weighted or not. accept_sampled = alpha, of sampled drafting (tv is 1 minus it);
accept_greedy = [argmax q = argmax p], T=0 verification; accept_top1 = p(argmax q), a greedy draft under sampled
verification. All count tokens outside the draft vocabulary as rejected."""


@dataclass(frozen=True)
class LossWeights:
    """An ablation's row: weights of the terms, and LK lambda's eta."""

    lambda_ce: float = 0.0
    lambda_rkl: float = 0.0
    beta_hinge: float = 0.0
    lambda_tv: float = 0.0
    lambda_lk_alpha: float = 0.0
    lambda_lk_lambda: float = 0.0
    lk_eta: float = 3.0

    @property
    def of_whole(self) -> bool:
        """Whether a term needs p, not only p~."""
        return bool(self.beta_hinge) or self.of_overlap

    @property
    def of_overlap(self) -> bool:
        """Whether a term needs alpha."""
        return bool(self.lambda_tv or self.lambda_lk_alpha or self.lambda_lk_lambda)

    def terms(self) -> dict[str, "LossWeights"]:
        """Each weighted term alone, by its weight's name."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "lk_eta"}
        return {name: LossWeights(**{name: value}, lk_eta=self.lk_eta) for name, value in named.items() if value}


@dataclass(frozen=True)
class Teacher:
    """The target's distribution at N positions, log p = logits / temperature - log_norm.

    `logits` [N, Vd] in the target's own type (a wider one would hold the same values), `log_norm` and `log_norm_kept`
    fp32 [N], the log-normalisers over the whole and over the draft vocabulary; `top` int64 [N], the draft id of the
    target's argmax, -1 when that token is outside.
    """

    logits: Tensor
    log_norm: Tensor
    log_norm_kept: Tensor
    top: Tensor
    temperature: float

    @classmethod
    def cat(cls, parts: Sequence["Teacher"]) -> "Teacher":
        tensors = [f.name for f in fields(cls) if f.name != "temperature"]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in tensors}
        return cls(**joined, temperature=parts[0].temperature)


def wide(x: Tensor) -> Tensor:
    """At least fp32."""
    return x if x.dtype == torch.float64 else x.float()


def tempered(x: Tensor, temperature: float) -> Tensor:
    """Logits over temperature, at least fp32."""
    return wide(x) if temperature == 1 else wide(x) / temperature


@compiled
def _normalisers(logits: Tensor, kept: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    return tempered(logits, temperature).logsumexp(-1), tempered(kept, temperature).logsumexp(-1), logits.argmax(-1)


def teacher_from_logits(logits: Tensor, target_ids: Tensor, temperature: float) -> Teacher:
    """Whole-vocabulary logits [N, V] and the target id of each draft id [Vd] to the Teacher at `temperature`."""
    kept = logits.index_select(-1, target_ids)
    log_norm, log_norm_kept, top = _normalisers(logits, kept, temperature)
    return Teacher(kept, log_norm, log_norm_kept, _draft_id(top, target_ids), temperature)


def _draft_id(ids: Tensor, target_ids: Tensor) -> Tensor:
    place = torch.searchsorted(target_ids, ids).clamp_max(len(target_ids) - 1)
    return torch.where(target_ids[place] == ids, place, -1)


def loss_and_gradient(
    log_q: Tensor, log_p: Tensor | None, log_kept: Tensor, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """Loss of each row, [n], and its gradient by z / temperature, [n, Vd].

    `log_q`, `log_p` (when some term is `of_whole`) and `log_kept` (of p~) are [n, Vd], fp32 or fp64.
    """
    w, q = weights, log_q.exp()
    loss, pull, push = log_q.new_zeros(len(log_q)), None, w.lambda_ce
    if w.lambda_rkl:
        pull = (log_q - log_kept).mul_(w.lambda_rkl)
        loss += _dot(q, pull)
    if w.beta_hinge:
        excess = (log_q - log_p).clamp_min_(0)
        loss += w.beta_hinge * _dot(q, excess)
        slope = excess.add_(excess.sign()).mul_(w.beta_hinge)
        pull = slope if pull is None else pull.add_(slope)
    if w.of_overlap:
        alpha = torch.minimum(log_q, log_p).exp_().sum(-1).clamp_min(torch.finfo(log_q.dtype).tiny)
        blend = torch.exp(-w.lk_eta * alpha) if w.lambda_lk_lambda else torch.zeros_like(alpha)
        push = push + w.lambda_lk_lambda * blend[:, None]
        strength = w.lambda_tv + w.lambda_lk_alpha / alpha + w.lambda_lk_lambda * (1 - blend)
        loss += (w.lambda_tv + w.lambda_lk_lambda * (1 - blend)) * (1 - alpha) - w.lambda_lk_alpha * alpha.log()
        loss += w.lambda_lk_lambda * blend * _dot(log_kept.exp(), log_kept)  # KL = ce - entropy; ce comes with push
        slope = (log_q < log_p).to(q.dtype).mul_(-strength[:, None])
        pull = slope if pull is None else pull.add_(slope)
    gradient = None if pull is None else pull.sub_(_dot(q, pull)[:, None]).mul_(q)
    if w.lambda_ce or w.lambda_lk_lambda:
        p_kept = log_kept.exp()
        loss -= (push * _dot(p_kept, log_q)[:, None])[:, 0]
        forward = p_kept.neg_().add_(q).mul_(push)
        gradient = forward if gradient is None else gradient.add_(forward)
    return loss, torch.zeros_like(q) if gradient is None else gradient


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, [n]."""
    return torch.linalg.vecdot(a, b)


def figures(log_q: Tensor, log_p: Tensor, log_kept: Tensor, top: Tensor) -> Tensor:
    """FIGURES of each row, [n, 7]; arguments as for `loss_and_gradient`, `top` int64 [n] as in Teacher."""
    q, best = log_q.exp(), log_q.argmax(-1)
    alpha = torch.minimum(log_q, log_p).exp().sum(-1)
    values = (
        -_dot(log_kept.exp(), log_q),
        _dot(q, log_q - log_kept),
        _dot(q, (log_q - log_p).clamp_min(0)),
        -alpha.clamp_min(torch.finfo(log_q.dtype).tiny).log(),
        alpha,
        (best == top).to(q.dtype),
        log_p.gather(1, best[:, None])[:, 0].exp(),
    )
    return torch.stack(values, -1)
