"""One training step against the formulas of EAGLE-3 written out: mask matrices, loops, no shared code."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny_draft import LAYERS, random_draft, random_target

from specforge.train.batches import Batch
from specforge.train.losses import FIGURES, LossWeights
from specforge.train.measure import forward
from specforge.train.unroll import Objective

VOCAB = 40
KEPT = torch.arange(0, VOCAB, 2)
MIXED = LossWeights(lambda_ce=0.4, lambda_rkl=0.5, beta_hinge=0.1)
OBJECTIVE = Objective(MIXED, ttt_length=4, decay=0.8, temperature=0.7)


@pytest.fixture(scope="module")
def target():
    return random_target(VOCAB, torch.float64)


@pytest.fixture
def draft(target):
    return random_draft(target, KEPT)


def rows_of(lengths=(13, 9), answers=((6, 10), (3, 9))) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random ids int64 [T] and their loss mask bool [T]: the tokens of each sequence's answer are supervised."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length, (start, end) in zip(lengths, answers, strict=True):
        place = torch.arange(length)
        rows.append((torch.randint(VOCAB, (length,), generator=generator), (place >= start) & (place < end)))
    return rows


def packed(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> Batch:
    ids, masks = ([x.numpy() for x in column] for column in zip(*rows, strict=True))
    return Batch.pack({"id": list(range(len(rows))), "input_ids": ids, "loss_mask": masks})


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x, positions, theta):
    """x [T, heads, D]: the pair (j, j + D/2) turns by position * theta^(-2j/D)."""
    half = x.shape[-1] // 2
    angle = positions[:, None].double() * theta ** (-torch.arange(half).double() / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def row_losses(logits, p, weights: LossWeights, temperature) -> torch.Tensor:
    log_q = torch.log_softmax(logits / temperature, -1)
    q, log_p, log_kept = log_q.exp(), p.log(), (p / p.sum(-1, keepdim=True)).log()
    ce, rkl = -(log_kept.exp() * log_q).sum(-1), (q * (log_q - log_kept)).sum(-1)
    hinge = (q * (log_q - log_p).clamp_min(0)).sum(-1)
    return weights.lambda_ce * ce + weights.lambda_rkl * rkl + weights.beta_hinge * hinge


def reference(draft, target, ids, supervised, objective) -> torch.Tensor:
    """The loss of one unpadded sequence."""
    w, config, model = dict(draft.named_parameters()), draft.config, target.model
    eps, theta, size = config.rms_norm_eps, config.rope_parameters["rope_theta"], config.head_dim
    seen = model(ids[None], output_hidden_states=True)
    p = torch.softmax(seen.logits[0] / objective.temperature, -1)[:, KEPT]
    features = torch.cat([seen.hidden_states[layer + 1][0] for layer in LAYERS], -1)
    count = len(ids) - 1
    hidden, total = features[:count] @ w["fc.weight"].T, 0.0
    padded = torch.cat((ids, ids.new_zeros(objective.ttt_length)))
    keys, values = [], []
    for i in range(objective.ttt_length):
        token = model.get_input_embeddings()(padded[1 + i : 1 + i + count])
        x = torch.cat(
            (
                rms(token, w["midlayer.input_layernorm.weight"], eps),
                rms(hidden, w["midlayer.hidden_norm.weight"], eps),
            ),
            -1,
        )
        q, k, v = ((x @ w[f"midlayer.self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, size)) for name in "qkv")
        place = torch.arange(count) + i
        groups = q.shape[1] // k.shape[1]
        keys.append(rotated(k, place, theta).repeat_interleave(groups, 1))
        values.append(v.repeat_interleave(groups, 1))
        own = torch.eye(count, dtype=torch.bool)
        mask = torch.cat([torch.ones(count, count, dtype=torch.bool).tril(), *[own] * i], 1)
        scores = torch.einsum("qhd,khd->hqk", rotated(q, place, theta), torch.cat(keys)) / size**0.5
        weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
        mixed = torch.einsum("hqk,khd->qhd", weights, torch.cat(values)).flatten(1)
        hidden = hidden + mixed @ w["midlayer.self_attn.o_proj.weight"].T
        normed = rms(hidden, w["midlayer.post_attention_layernorm.weight"], eps)
        gate, up = (normed @ w[f"midlayer.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        hidden = hidden + (gate * gate.sigmoid() * up) @ w["midlayer.mlp.down_proj.weight"].T
        logits = rms(hidden, w["norm.weight"], eps) @ w["lm_head.weight"].T
        for t in range(count - 1 - i):
            if supervised[t + 2 + i]:
                loss = row_losses(logits[t], p[t + 1 + i], objective.weights, objective.temperature)
                total = total + objective.decay**i * loss
    return total


def test_loss_and_every_gradient_are_those_of_the_written_out_formulas(draft, target):
    rows = rows_of()
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    loss = forward(draft, target, packed(rows), OBJECTIVE)
    alone = [reference(draft, target, *row, OBJECTIVE) for row in rows]
    assert loss.item() == pytest.approx(sum(alone).item(), rel=1e-5)
    names, parameters = zip(*draft.named_parameters(), strict=True)
    gradients, wanted = (torch.autograd.grad(value, parameters) for value in (loss, sum(alone)))
    for name, gradient, expected in zip(names, gradients, wanted, strict=True):
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item(), msg=name)


def test_packing_equals_one_sequence_at_a_time(draft, target):
    rows = rows_of((13, 3, 9, 20), ((6, 10), (2, 3), (3, 9), (0, 20)))
    together = forward(draft, target, packed(rows), OBJECTIVE)
    alone = sum(forward(draft, target, packed([row]), OBJECTIVE) for row in rows)
    torch.testing.assert_close(together, alone)
    gradients = [torch.autograd.grad(loss, tuple(draft.parameters())) for loss in (together, alone)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("moved", [4, 8, 12])
def test_a_loss_does_not_look_at_its_own_token_or_later_ones(draft, target, moved):
    ids, _ = rows_of()[0]
    other = ids.clone()
    other[moved] = (ids[moved] + 1) % VOCAB

    def loss(ids, position) -> float:
        return forward(draft, target, packed([(ids, torch.arange(len(ids)) == position)]), OBJECTIVE).item()

    assert loss(other, moved) == pytest.approx(loss(ids, moved), rel=1e-6)
    assert loss(other, moved - 2) == pytest.approx(loss(ids, moved - 2), rel=1e-6)
    if moved < 12:
        assert loss(other, moved + 1) != pytest.approx(loss(ids, moved + 1), rel=1e-3)


@pytest.mark.parametrize("shift", [1, 2])
def test_a_shifted_mask_supervises_what_follows_the_tokens_to_learn(draft, target, shift):
    (ids, mask), _ = rows_of()
    moved = torch.cat((torch.zeros(shift, dtype=torch.bool), mask[:-shift]))
    shifted = forward(draft, target, packed([(ids, mask)]), replace(OBJECTIVE, mask_shift=shift))
    torch.testing.assert_close(shifted, forward(draft, target, packed([(ids, moved)]), OBJECTIVE))


def test_a_batch_with_nothing_to_learn_costs_nothing(draft, target):
    rows = rows_of((9, 5), ((0, 2), (0, 0)))  # the third token is the first that a draft predicts
    told = []
    assert forward(draft, target, packed(rows), OBJECTIVE, told).item() == 0
    assert not told


def test_terms_of_the_steps_add_up_to_the_loss(draft, target):
    told = []
    loss = forward(draft, target, packed(rows_of()), OBJECTIVE, told)
    steps = [dict(zip(FIGURES, step.tolist(), strict=True)) for step in told]
    weighted = [0.4 * t["ce"] + 0.5 * t["rkl"] + 0.1 * t["hinge"] for t in steps]
    assert sum(0.8**i * x for i, x in enumerate(weighted)) == pytest.approx(loss.item())


def test_an_answer_too_short_for_the_later_steps_can_still_be_logged(draft, target):
    told = []
    rows = rows_of(lengths=(4,), answers=((2, 4),))  # steps 2 and 3 predict only beyond the end
    assert forward(draft, target, packed(rows), OBJECTIVE, told).isfinite()
    assert [step[0].item() > 0 for step in told] == [True, True, False, False]


def test_the_hooks_read_the_outputs_of_the_named_layers(target):
    ids = rows_of()[0][0][None]
    features, final = target(ids)
    seen = target.model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(features, torch.cat([seen[layer + 1] for layer in LAYERS], -1))
    torch.testing.assert_close(final, seen[-1])
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(features.chunk(3, -1)))


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "transformers"])
def test_the_target_reads_packed_sequences_as_if_alone(target, ours, monkeypatch):
    if not ours:
        monkeypatch.setattr(target.model.config, "_attn_implementation", "sdpa")
    rows = rows_of((13, 1, 9), ((6, 10), (0, 1), (3, 9)))
    batch = packed(rows)
    features, final = target.packed(batch.ids, batch.packing)
    alone = [target(ids[None]) for ids, _ in rows]
    torch.testing.assert_close(features, torch.cat([x[0][0] for x in alone]))
    torch.testing.assert_close(final, torch.cat([x[1][0] for x in alone]))
