"""Speculative decoding: the target's own text, whatever the draft, and the right count of what it cost."""

import pytest
import torch
from tiny_draft import random_draft, random_target
from torch.nn import functional as F

from specforge.eval.decode import Decoded, Limits, decode_plain, decode_speculative
from specforge.eval.drafter import Drafter
from specforge.eval.sampling import distribution, pick, verify_sampled
from specforge.model.flash import Places
from specforge.model.packing import Packing
from specforge.train.unroll import unroll

VOCAB, COUNT = 40, 4
EVERYTHING, HALF = torch.arange(VOCAB), torch.arange(0, VOCAB, 2)
PROMPT = torch.tensor([[5, 11, 2, 30, 7, 19]])


@torch.no_grad()
def counting_target(context: float = 0.0):
    """Says the number after its last token and, by `context`, what its random layers add to that."""
    target = random_target(VOCAB)
    for layer in target.decoder.layers:
        layer.self_attn.o_proj.weight.mul_(context)
        layer.mlp.down_proj.weight.mul_(context)
    embedding = torch.randn(target.embed.weight.shape, generator=torch.Generator().manual_seed(2))
    embedding[:, 0] = 0
    embedding *= 4 / embedding.norm(dim=-1, keepdim=True)
    embedding[:, 0] = 2  # the same in every token: what the draft's queries and keys read
    target.embed.weight.copy_(embedding)
    target.head.weight.copy_(embedding.roll(1, 0))
    return target


@torch.no_grad()
def counting_draft(target, kept=EVERYTHING):
    """Right about counting_target(0): each place attends to itself alone and replaces its state by the token read."""
    draft, hidden = random_draft(target, kept), target.model.config.hidden_size
    attention, size = draft.midlayer.self_attn, draft.config.head_dim
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.zero_()[:, 0] = 30  # equal queries and keys: their rotations agree best at distance 0
    attention.v_proj.weight.copy_(torch.cat((torch.eye(hidden), -torch.eye(hidden)), 1))
    attention.o_proj.weight.zero_()[:, :size] = torch.eye(hidden)[:, :size]  # query heads 0, 1 have value head 0
    attention.o_proj.weight[:, 2 * size : 3 * size] = torch.eye(hidden)[:, size:]  # and 2, 3 have value head 1
    draft.fc.weight.zero_()
    draft.midlayer.mlp.down_proj.weight.zero_()
    draft.lm_head.weight.copy_(target.head.weight[kept])
    return draft


def wrong_draft(target):
    """Says the second number after its last token."""
    draft = counting_draft(target)
    draft.lm_head.weight.data = draft.lm_head.weight.data.roll(1, 0)
    return draft


def decode(target, draft=None, temperature=0.0, max_new=24, ends=(), prompt=PROMPT) -> Decoded:
    limits = Limits(max_new, COUNT, frozenset(ends))
    generator = torch.Generator().manual_seed(0)
    if draft is None:
        return decode_plain(target, prompt, limits, temperature, generator)
    return decode_speculative(target, draft, prompt, limits, temperature, generator)


def accept_length(decoded: Decoded) -> float:
    return (len(decoded.tokens) - 1) / len(decoded.rounds)


def test_plain_decoding_is_transformers_greedy_text():
    target = random_target(VOCAB)
    expected = target.model.generate(PROMPT, max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert decode(target).tokens == expected[0, PROMPT.shape[1] :].tolist()


@pytest.mark.parametrize("context", [0.2, 1.0])
@pytest.mark.parametrize("kept", [EVERYTHING, HALF], ids=["whole", "half"])
@pytest.mark.parametrize("make", [random_draft, counting_draft])
def test_at_temperature_zero_the_text_is_the_targets_own_greedy_text(context, kept, make):
    target = counting_target(context)
    draft = make(target, kept)
    for start in range(3):
        prompt = PROMPT[:, start:]
        plain, spec = decode(target, prompt=prompt), decode(target, draft, prompt=prompt)
        assert spec.tokens[:24] == plain.tokens


def test_that_comparison_met_rounds_of_every_outcome():
    target = counting_target(0.2)
    draft = counting_draft(target)
    taken = {a for start in range(3) for a, _ in decode(target, draft, prompt=PROMPT[:, start:], max_new=60).rounds}
    assert taken == {*range(COUNT + 1)}


def test_a_draft_that_is_always_right_gives_whole_chains():
    target = counting_target()
    assert decode(target).tokens == [n % VOCAB for n in range(20, 44)]
    spec = decode(target, counting_draft(target), max_new=1 + 5 * (COUNT + 1))
    assert spec.rounds == [(COUNT, COUNT)] * 5
    assert accept_length(spec) == COUNT + 1


def test_a_draft_that_is_always_wrong_gives_accept_length_one():
    target = counting_target()
    spec = decode(target, wrong_draft(target))
    assert set(spec.rounds) == {(0, 1)}
    assert accept_length(spec) == 1
    assert spec.tokens == decode(target).tokens


def test_every_token_after_the_first_is_accepted_or_the_rounds_own():
    target = counting_target(0.2)
    spec = decode(target, counting_draft(target))
    assert len(spec.tokens) - 1 == sum(accepted + 1 for accepted, _ in spec.rounds)


@pytest.mark.parametrize(
    ("place", "rounds"),
    [(0, []), (3, [(3, 3)]), (COUNT, [(COUNT, COUNT)]), (COUNT + 1, [(COUNT, COUNT)]), (7, [(COUNT, COUNT), (2, 2)])],
)
def test_nothing_after_an_end_token_counts(place, rounds):
    target = counting_target()
    text = list(range(20, 21 + place))
    spec = decode(target, counting_draft(target), ends={text[-1]})
    assert spec.tokens == text == decode(target, ends={text[-1]}).tokens
    assert spec.rounds == rounds


def test_the_first_refused_token_is_judged_and_those_after_it_are_not():
    target = counting_target(0.2)
    rounds = decode(target, counting_draft(target)).rounds
    assert all(judged == min(accepted + 1, COUNT) for accepted, judged in rounds)


def test_sampled_texts_depend_on_the_seed_alone():
    target = counting_target(0.2)
    draft = counting_draft(target)
    assert decode(target, draft, 1.0).tokens == decode(target, draft, 1.0).tokens


P = torch.tensor([[0.45, 0.25, 0.05, 0.15, 0.10], [0.1, 0.1, 0.1, 0.2, 0.5], [0.05, 0.6, 0.15, 0.1, 0.1]])
KEPT, Q = torch.tensor([0, 2, 3]), torch.tensor([[0.2, 0.6, 0.2], [0.5, 0.25, 0.25]])
DRAWS = 6000


@pytest.fixture(scope="module")
def verified():
    """(accepted, own token, proposed tokens) of many chains drawn from Q and judged against P."""
    generator, temperature = torch.Generator().manual_seed(7), 0.5
    logits = P.log() * temperature
    outcomes = []
    for _ in range(DRAWS):
        tokens = [int(KEPT[pick(row, generator)]) for row in Q]
        outcomes.append((*verify_sampled(tokens, Q, KEPT, logits, temperature, generator), tokens))
    return outcomes


def text(outcome) -> list[int]:
    accepted, own, tokens = outcome
    return [*tokens[:accepted], own]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_speculative_sampling_says_is_distributed_as_the_target(verified, position):
    said = [text(outcome)[position] for outcome in verified if outcome[0] >= position]
    counts = torch.bincount(torch.tensor(said), minlength=5)
    expected = P[position] * len(said)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert len(said) > 500
    assert chi_square < 18.5  # 4 degrees of freedom: one in a thousand


def test_the_share_of_accepted_first_tokens_is_the_overlap(verified):
    overlap = torch.minimum(P[0, KEPT], Q[0]).sum().item()
    share = sum(accepted > 0 for accepted, *_ in verified) / DRAWS
    assert share == pytest.approx(overlap, abs=0.02)


def test_sampled_text_of_a_whole_decoding_is_distributed_as_the_targets():
    """The first two tokens of the answer: the prefill's, then one proposed by the draft and verified."""
    target = counting_target(0.2)
    draft = random_draft(target, HALF)
    limits, generator = Limits(2, 1, frozenset()), torch.Generator().manual_seed(1)
    draws = 250
    pairs = [decode_speculative(target, draft, PROMPT, limits, 3.0, generator).tokens[1] for _ in range(draws)]
    with torch.no_grad():
        first = distribution(target.head(target(PROMPT)[1][0, -1]), 3.0)
        both = torch.cat((PROMPT.repeat(VOCAB, 1), torch.arange(VOCAB)[:, None]), 1)
        second = first @ distribution(target.head(target(both)[1][:, -1]), 3.0)
    wrong = torch.bincount(torch.tensor(pairs), minlength=VOCAB) / draws - second
    # of fair draws the expected distance is about 0.5 * sum sqrt(2 p / (pi n))
    assert wrong.abs().sum() / 2 < 1.5 * 0.5 * (2 * second / (torch.pi * draws)).sqrt().sum()


def unrolled_distributions(draft, target, ids, row, steps, temperature) -> list[torch.Tensor]:
    """q at `row` in each training-time step over the text `ids`, [1, n]."""
    length = ids.shape[1] - 1
    places = Places(torch.arange(length), Packing.of([length]))
    embedded = target.embed(F.pad(ids, (0, steps)))[0]
    features = target(ids)[0][0, :length]
    states = unroll(draft, features, places, lambda step, _: embedded[1 + step : 1 + step + length], steps)
    return [distribution(draft.logits(hidden[row]), temperature) for hidden in states]


@torch.no_grad()
def test_the_drafter_computes_what_training_unrolled():
    target = random_target(VOCAB)
    draft, generator = random_draft(target, HALF), torch.Generator().manual_seed(3)
    text = torch.tensor([[5, 11, 2, 30, 7, 19, 8, 22, 4, 31]])
    features, _ = target(text)
    drafter = Drafter(draft, target, capacity=32)
    known = 0
    for end in (4, 5, 8):  # whole prompt, then what one and three accepted tokens add
        drafter.extend(text[:, known + 1 : end + 1], features[:, known:end])
        known = end
        chain = drafter.propose(COUNT, 0.8, generator)
        ids = torch.cat((text[:, : end + 1], torch.tensor([chain.tokens])), 1)
        wanted = unrolled_distributions(draft, target, ids, end - 1, COUNT, 0.8)
        torch.testing.assert_close(chain.q, torch.stack(wanted), rtol=1e-4, atol=1e-6)
