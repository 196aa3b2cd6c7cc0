"""Unrolled attention against a masked softmax over concatenated keys."""

import pytest
import torch

from specforge.model import attention
from specforge.model.attention import Places, unrolled_attention

BATCH, LENGTH, HEADS, GROUPS, SIZE = 2, 7, 4, 2, 8
ROWS = torch.tensor([0, 2, 3, 6, 7, 9, 13])  # of 14 places
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # scores and weights are fp32 inside


def reference(q, k, v, later, places: Places) -> torch.Tensor:
    """One row after another: the keys it may see, in a row, and a softmax over them."""
    out = []
    for row, place in enumerate(places.index.tolist()):
        sequence, t = divmod(place, places.length)
        for head in range(q.shape[1]):
            group = head // (q.shape[1] // k.shape[1])
            keys = torch.stack([*k[sequence, group, : t + 1], *(key[row, group] for key, _ in later)])
            values = torch.stack([*v[sequence, group, : t + 1], *(value[row, group] for _, value in later)])
            out.append(torch.softmax(keys @ q[row, head] / q.shape[-1] ** 0.5, 0) @ values)
    return torch.stack(out).unflatten(0, q.shape[:2])


@pytest.fixture(params=["flash", "plain"])
def kernel(request, monkeypatch):
    if request.param == "plain":  # what runs on devices without the CPU's flash attention
        monkeypatch.setattr(attention, "_kernel", lambda q: attention._Plain)


def inputs(steps: int, groups: int):
    generator = torch.Generator().manual_seed(steps)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul_(1.5).requires_grad_()

    later = [(draw(len(ROWS), groups, SIZE), draw(len(ROWS), groups, SIZE)) for _ in range(steps)]
    grid = (BATCH, groups, LENGTH, SIZE)
    return draw(len(ROWS), HEADS, SIZE), draw(*grid), draw(*grid), later


@pytest.mark.parametrize("groups", [HEADS, GROUPS, 1])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_equals_the_masked_softmax_forward_and_backward(kernel, steps, groups):
    q, k, v, later = inputs(steps, groups)
    places = Places(ROWS, BATCH, LENGTH)
    out, wanted = unrolled_attention(q, k, v, later, places), reference(q, k, v, later, places)
    torch.testing.assert_close(out, wanted, **CLOSE)
    leaves = [q, k, v, *(tensor for pair in later for tensor in pair)]
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradients, expected = (torch.autograd.grad(x, leaves, direction) for x in (out, wanted))
    torch.testing.assert_close(gradients, expected, **CLOSE)


def test_strong_scores_do_not_overflow(kernel):
    q, k, v, later = inputs(2, GROUPS)
    places = Places(ROWS, BATCH, LENGTH)
    out = unrolled_attention(q * 200, k, v, later, places)
    torch.testing.assert_close(out, reference(q * 200, k, v, later, places), rtol=1e-3, atol=1e-3)


def test_a_row_sees_no_later_place_and_no_other_sequence(kernel):
    q, k, v, later = inputs(1, GROUPS)
    places = Places(ROWS, BATCH, LENGTH)
    out = unrolled_attention(q, k, v, later, places)
    row = 2  # place 3 of the first sequence
    by_key = torch.autograd.grad(out[row].sum(), k, retain_graph=True)[0]
    assert by_key[0, :, :4].abs().min() > 0
    assert by_key[0, :, 4:].abs().max() == 0
    assert by_key[1].abs().max() == 0
    by_later = torch.autograd.grad(out[row].sum(), later[0][0])[0]
    assert by_later.abs().amax((1, 2)).nonzero().flatten().tolist() == [row]
