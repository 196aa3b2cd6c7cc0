"""The fused loss against its definitions: float64 autograd, finite differences, and cases done by hand."""

import math

import pytest
import torch

from specforge.train import head
from specforge.train.head import distillation_loss, new_figures
from specforge.train.losses import FIGURES, LossWeights, teacher_from_logits

CE, RKL, HINGE = LossWeights(lambda_ce=1.0), LossWeights(lambda_rkl=1.0), LossWeights(beta_hinge=1.0)
TV, LK_ALPHA = LossWeights(lambda_tv=1.0), LossWeights(lambda_lk_alpha=1.0)
LK_LAMBDA = LossWeights(lambda_lk_lambda=1.0, lk_eta=2.0)
ALL = LossWeights(0.4, 0.5, 0.1, 0.3, 0.2, 0.7, 1.5)
MIXED = LossWeights(lambda_ce=0.4, lambda_rkl=0.5, beta_hinge=0.1)
KEPT = torch.tensor([1, 2, 4, 7, 8])  # of a target vocabulary of 9
EVERY = pytest.mark.parametrize(
    "weights",
    [CE, RKL, HINGE, TV, LK_ALPHA, LK_LAMBDA, MIXED, ALL],
    ids=["ce", "rkl", "hinge", "tv", "lk-alpha", "lk-lambda", "mixed", "all"],
)


def defined(hidden, weight, logits, weights: LossWeights, temperature: float) -> torch.Tensor:
    """The definitions of the table, as they stand there."""
    log_p = torch.log_softmax(logits / temperature, -1)[:, KEPT]
    kept = log_p - log_p.logsumexp(-1, keepdim=True)
    log_q = torch.log_softmax(hidden @ weight.T / temperature, -1)
    q = log_q.exp()
    alpha = torch.minimum(log_p.exp(), q).sum(-1)
    blend = torch.exp(-weights.lk_eta * alpha.detach())
    kl = (kept.exp() * (kept - log_q)).sum(-1)
    return (
        -weights.lambda_ce * (kept.exp() * log_q).sum()
        + weights.lambda_rkl * (q * (log_q - kept)).sum()
        + weights.beta_hinge * (q * (log_q - log_p).clamp_min(0)).sum()
        + weights.lambda_tv * (1 - alpha).sum()
        - weights.lambda_lk_alpha * alpha.log().sum()
        + weights.lambda_lk_lambda * (blend * kl + (1 - blend) * (1 - alpha)).sum()
    )


def fused(hidden, weight, teacher, weights: LossWeights, told: list | None = None) -> torch.Tensor:
    """The loss of all rows against the teacher's, row by row; `told` receives FIGURES [n, 7]."""
    count = len(hidden)
    figures = None if told is None else new_figures(teacher.log_norm, count)
    loss = distillation_loss(
        hidden, weight, teacher, torch.arange(count), teacher.log_norm.new_ones(count), weights, figures
    )
    if told is not None:
        told.append(figures)
    return loss


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(3)
    hidden, weight, logits = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 4), (5, 4), (6, 9))
    )
    return hidden.requires_grad_(), weight.requires_grad_(), logits * 2


@EVERY
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_loss_and_gradients_are_those_of_the_definitions(case, weights, temperature):
    hidden, weight, logits = case
    expected = defined(hidden, weight, logits, weights, temperature)
    loss = fused(hidden, weight, teacher_from_logits(logits, KEPT, temperature), weights)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (hidden, weight)), wanted)


@pytest.mark.parametrize("weights", [CE, RKL, HINGE, TV, LK_ALPHA, MIXED], ids=str)  # LK lambda holds its w still
def test_gradients_agree_with_finite_differences(case, weights):
    hidden, weight, logits = case
    teacher = teacher_from_logits(logits, KEPT, 0.8)
    assert torch.autograd.gradcheck(lambda h, w: fused(h, w, teacher, weights), (hidden, weight))


def by_hand(p: list[float], kept: list[int], q: list[float], weights: LossWeights = CE):
    """Loss, gradient by the logits and FIGURES for one row with the given probabilities at temperature 1."""
    hidden = torch.tensor(q, dtype=torch.float64).log()[None].requires_grad_()
    teacher = teacher_from_logits(torch.tensor([p], dtype=torch.float64).log(), torch.tensor(kept), 1.0)
    told = []
    loss = fused(hidden, torch.eye(len(q), dtype=torch.float64), teacher, weights, told)
    loss.backward()
    return loss.item(), hidden.grad[0].tolist(), dict(zip(FIGURES, told[0][0].tolist(), strict=True))


def test_cross_entropy_of_two_tokens():
    loss, gradient, _ = by_hand([0.75, 0.25], [0, 1], [0.5, 0.5], CE)
    assert loss == pytest.approx(math.log(2))
    assert gradient == pytest.approx([-0.25, 0.25])


def test_reverse_kl_of_two_tokens():
    loss, gradient, _ = by_hand([0.75, 0.25], [0, 1], [0.5, 0.5], RKL)
    assert loss == pytest.approx(0.5 * math.log(4 / 3))
    assert gradient == pytest.approx([-0.25 * math.log(3), 0.25 * math.log(3)])


def test_hinge_counts_only_the_tokens_the_draft_is_too_sure_of():
    loss, gradient, _ = by_hand([0.75, 0.25], [0, 1], [0.5, 0.5], HINGE)
    assert loss == pytest.approx(0.5 * math.log(2))
    pull = 0.25 * (math.log(2) + 1)
    assert gradient == pytest.approx([-pull, pull])


def test_cross_entropy_and_reverse_kl_renormalise_the_target_and_hinge_does_not():
    p, kept, q = [0.5, 0.25, 0.25], [0, 1], [2 / 3, 1 / 3]
    assert by_hand(p, kept, q, RKL)[0] == pytest.approx(0)
    assert by_hand(p, kept, q, CE)[1] == pytest.approx([0, 0])
    assert by_hand(p, kept, q, HINGE)[0] == pytest.approx(math.log(4 / 3))


def test_acceptance_figures_count_the_tokens_outside_the_draft_vocabulary():
    _, _, told = by_hand([0.5, 0.2, 0.3], [1, 2], [0.6, 0.4])
    assert told["accept_sampled"] == pytest.approx(0.2 + 0.3)
    assert told["accept_top1"] == pytest.approx(0.2)
    assert told["accept_greedy"] == 0  # the target's argmax is outside, whatever the draft says


def test_greedy_acceptance_is_agreement_on_target_ids():
    agreeing, differing = by_hand([0.2, 0.2, 0.6], [1, 2], [0.4, 0.6]), by_hand([0.2, 0.2, 0.6], [1, 2], [0.6, 0.4])
    assert (agreeing[2]["accept_greedy"], differing[2]["accept_greedy"]) == (1, 0)


def test_temperature_flattens_both_distributions(case):
    hidden, weight, logits = case
    hot = fused(hidden, weight, teacher_from_logits(logits, KEPT, 2.0), MIXED)
    halved = fused(hidden / 2, weight, teacher_from_logits(logits / 2, KEPT, 1.0), MIXED)
    torch.testing.assert_close(hot, halved)


def test_chunks_change_nothing(case, monkeypatch):
    hidden, weight, logits = case
    teacher = teacher_from_logits(logits, KEPT, 1.0)

    def run() -> list[torch.Tensor]:
        told = []
        loss = fused(hidden, weight, teacher, ALL, told)
        return [loss, *torch.autograd.grad(loss, (hidden, weight)), *told]

    whole = run()
    sizes, plain = [], head._chunk
    monkeypatch.setattr(head, "_chunk", lambda logits, *rest: sizes.append(len(logits)) or plain(logits, *rest))
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", 2 * len(KEPT))
    torch.testing.assert_close(run(), whole)
    assert sizes == [2, 2, 2]


def test_rows_are_matched_with_their_teacher_and_scaled(case):
    hidden, weight, logits = case
    teacher = teacher_from_logits(logits, KEPT, 1.0)
    rows, scale = torch.tensor([3, 3, 0]), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    loss = distillation_loss(hidden[:3], weight, teacher, rows, scale, ALL)
    alone = [
        fused(hidden[i : i + 1], weight, teacher_from_logits(logits[[row]], KEPT, 1.0), ALL)
        for i, row in enumerate((3, 3, 0))
    ]
    torch.testing.assert_close(loss, alone[0] + 0.5 * alone[1] + 2 * alone[2])


def test_bf16_states_still_meet_the_target_in_fp32(case):
    hidden, weight, logits = (tensor.detach().bfloat16() for tensor in case)
    told = []
    loss = fused(hidden, weight, teacher_from_logits(logits, KEPT, 1.0), MIXED, told)
    assert {loss.dtype, told[0].dtype} == {torch.float32}


def test_one_sample_reverse_kl_has_no_expected_gradient_and_the_exact_one_has():
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    log_q = torch.log_softmax(logits, -1)
    each = [torch.autograd.grad(log_q[y] - p[y].log(), logits, retain_graph=True)[0] for y in range(3)]
    expected = sum(log_q[y].exp().detach() * gradient for y, gradient in enumerate(each))
    assert expected.abs().max() < 1e-15
    hidden = logits.detach()[None].requires_grad_()
    teacher = teacher_from_logits(p.log()[None], torch.arange(3), 1.0)
    fused(hidden, torch.eye(3, dtype=torch.float64), teacher, RKL).backward()
    assert hidden.grad.abs().max() > 0.2


def test_the_score_function_estimate_of_the_reverse_kl_has_the_exact_gradient_as_its_mean():
    """Mean over y drawn from q of (log q(y) - log p(y)), detached, times grad log q(y): all y weighed by q."""
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    log_q = torch.log_softmax(logits, -1)
    each = [torch.autograd.grad(log_q[y], logits, retain_graph=True)[0] for y in range(3)]
    worth = (log_q - p.log()).detach()
    mean = sum(log_q[y].exp().detach() * worth[y] * gradient for y, gradient in enumerate(each))
    drawn = torch.multinomial(
        log_q.exp().detach(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    sampled = (worth[drawn, None] * torch.stack(each)[drawn]).mean(0)
    hidden = logits.detach()[None].requires_grad_()
    fused(
        hidden, torch.eye(3, dtype=torch.float64), teacher_from_logits(p.log()[None], torch.arange(3), 1.0), RKL
    ).backward()
    torch.testing.assert_close(hidden.grad[0], mean)
    torch.testing.assert_close(hidden.grad[0], sampled, atol=0.01, rtol=0)
