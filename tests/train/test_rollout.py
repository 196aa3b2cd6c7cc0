"""On-policy rollouts against what they stand for: the target asked about each drafted prefix, one at a time."""

from dataclasses import replace

import pytest
import torch
from test_unroll import KEPT, VOCAB, packed, rows_of
from tiny_draft import random_draft, random_target
from transformers import DynamicCache

from specforge.train import rollout
from specforge.train.losses import LossWeights
from specforge.train.measure import forward
from specforge.train.rollout import Branches, Draws, on_policy, rollout_loss, sample, score, teacher_forced
from specforge.train.unroll import Objective, Plan

OBJECTIVE = Objective(LossWeights(lambda_rkl=0.7, beta_hinge=0.3), ttt_length=4, decay=0.8, temperature=0.9)


@pytest.fixture(scope="module")
def target():
    return random_target(VOCAB, torch.float64)


@pytest.fixture
def draft(target):
    return random_draft(target, KEPT)


@pytest.fixture
def batch():
    return packed(rows_of())


def plan_of(batch) -> Plan:
    return Plan.of(batch, OBJECTIVE.ttt_length)


def test_one_masked_pass_scores_every_drafted_prefix_as_if_alone(target, batch):
    anchors = torch.tensor([4, 7, 16])  # two in the first text, one in the second
    tokens = torch.tensor([[1, 2, 3], [9, 8, 7], [30, 31, 32]])
    cache = DynamicCache()
    with torch.no_grad():
        target.packed(batch.ids, batch.packing, cache)
        found = score(target, batch, Branches(anchors, tokens, torch.ones(3, 4, dtype=torch.bool)), cache)
        for anchor, said, states in zip(anchors.tolist(), tokens, found, strict=True):
            start = 0 if anchor < 13 else 13
            _, final = target(torch.cat((batch.ids[start : anchor + 2], said))[None])
            torch.testing.assert_close(states, final[0, -3:])


def test_with_every_anchor_and_one_step_it_is_the_teacher_forced_loss(draft, target, batch):
    objective = replace(OBJECTIVE, ttt_length=1)
    plan = Plan.of(batch, 1)
    loss = rollout_loss(draft, target, batch, Draws.of(batch, plan, 1.0, "0"), objective)
    wanted = forward(draft, target, batch, objective)
    torch.testing.assert_close(loss, wanted)
    gradients, expected = (torch.autograd.grad(x, tuple(draft.parameters())) for x in (loss, wanted))
    torch.testing.assert_close(gradients, expected)


def test_its_states_are_taught_by_the_target_on_the_drafts_own_words(draft, target, batch, monkeypatch):
    """Every state's loss, from the draft and the target asked again about each prefix by themselves."""
    seen = {}
    monkeypatch.setattr(
        rollout, "score", lambda t, b, branches, cache: seen.update(b=branches) or score(t, b, branches, cache)
    )
    plan = plan_of(batch)
    draws = Draws.of(batch, plan, 0.4, "1")
    loss = rollout_loss(draft, target, batch, draws, OBJECTIVE)
    branches, total = seen["b"], 0.0
    for anchor, said, worth in zip(branches.anchors.tolist(), branches.tokens, draws.worth, strict=True):
        start = 0 if anchor < 13 else 13
        text = torch.cat((batch.ids[start : anchor + 2], said))
        # supervise the one token that each state predicts, so that only the anchor's states count
        for step in range(OBJECTIVE.ttt_length):
            prefix = torch.cat((text, torch.zeros(1, dtype=torch.int64)))
            place = anchor - start + 2 + step
            mask = torch.arange(len(prefix)) == place
            alone = replace(OBJECTIVE, ttt_length=step + 1)
            told = forward(draft, target, packed([(prefix, mask)]), alone)
            earlier = forward(draft, target, packed([(prefix, mask)]), replace(alone, ttt_length=step)) if step else 0.0
            total += worth * (told - earlier)
    torch.testing.assert_close(loss, total, rtol=1e-6, atol=1e-6)


def test_states_after_an_end_token_do_not_count(draft, target, batch, monkeypatch):
    monkeypatch.setattr(target, "end_ids", KEPT)  # whatever is sampled ends the answer
    loss = rollout_loss(draft, target, batch, Draws.of(batch, plan_of(batch), 1.0, "0"), OBJECTIVE)
    first = forward(draft, target, batch, replace(OBJECTIVE, ttt_length=1))
    torch.testing.assert_close(loss, first)


def test_draws_are_each_sequences_own_whatever_it_is_packed_with(batch):
    rows = rows_of()
    alone = [Draws.of(one, plan_of(one), 0.5, "seed") for one in map(lambda row: packed([row]), rows)]
    together = Draws.of(batch, plan_of(batch), 0.5, "seed")
    renamed = packed(rows[1:])
    renamed = replace(renamed, names=["1"])
    second = Draws.of(renamed, plan_of(renamed), 0.5, "seed")
    assert torch.equal(together.anchors, torch.cat((alone[0].anchors, second.anchors + 13)))
    assert torch.equal(together.uniform, torch.cat((alone[0].uniform, second.uniform)))
    other = Draws.of(batch, plan_of(batch), 0.5, "another")
    assert not torch.equal(together.uniform, other.uniform)


def test_samples_follow_q(draft):
    state = torch.randn(1, draft.config.hidden_size, dtype=torch.float64).expand(20_000, -1)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = sample(draft, state, 0.9, uniform)
    with torch.no_grad():
        q = torch.softmax(draft.logits(state[0]) / 0.9, -1)
    shares = torch.bincount(drawn, minlength=VOCAB)[KEPT] / len(drawn)
    torch.testing.assert_close(shares.double(), q, atol=0.015, rtol=0)


def test_anchors_are_a_share_of_the_supervised_places(batch):
    plan = plan_of(batch)
    supervised = plan.places.index[plan.drafted[0]]
    draws = Draws.of(batch, plan, 0.5, "0")
    assert torch.isin(draws.anchors, supervised).all()
    assert (draws.anchors.diff() > 0).all()
    assert draws.worth.sum().item() == pytest.approx(len(supervised))
    assert len(draws.anchors) == pytest.approx(0.5 * len(supervised), abs=1)


def test_terms_are_split_between_the_two_kinds_of_state():
    weights = LossWeights(0.4, 0.5, 0.1, lambda_tv=0.2)
    assert on_policy(weights) == LossWeights(lambda_rkl=0.5, beta_hinge=0.1)
    assert teacher_forced(weights) == LossWeights(lambda_ce=0.4, lambda_tv=0.2)
