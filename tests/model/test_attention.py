"""Unrolled attention against a masked softmax over concatenated keys."""

import pytest
import torch

from specforge.model import attention
from specforge.model.attention import UnrolledAttention
from specforge.model.flash import Places, Plain
from specforge.model.packing import Packing

HEADS, GROUPS, SIZE = 4, 2, 8
PACKING = Packing.of([7, 1, 5])
ROWS = torch.tensor([0, 2, 3, 6, 7, 9, 12])  # of 13 places
PLACES = Places(ROWS, PACKING)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # scores and weights are fp32 inside


def reference(q, k, v, later, places: Places) -> torch.Tensor:
    """One row after another: the keys it may see, in a row, and a softmax over them."""
    out = []
    for row, place in enumerate(places.index.tolist()):
        seen = range(place - int(places.packing.positions[place]), place + 1)
        for head in range(q.shape[1]):
            group = head // (q.shape[1] // k.shape[1])
            keys = torch.stack([*k[seen, group], *(key[row, group] for key, _ in later)])
            values = torch.stack([*v[seen, group], *(value[row, group] for _, value in later)])
            out.append(torch.softmax(keys @ q[row, head] / q.shape[-1] ** 0.5, 0) @ values)
    return torch.stack(out).unflatten(0, q.shape[:2])


def unrolled_attention(q, k, v, later, places: Places) -> torch.Tensor:
    """The last of 1 + len(later) steps with the same queries."""
    attend = UnrolledAttention(places)
    out = attend(q, k, v)
    for pair in later:
        out = attend(q, *pair)
    return out


@pytest.fixture(params=["flash", "plain"])
def kernel(request, monkeypatch):
    if request.param == "plain":  # what runs on devices without the CPU's flash attention
        monkeypatch.setattr(attention, "kernel_for", lambda q: Plain)


def inputs(steps: int, groups: int):
    generator = torch.Generator().manual_seed(steps)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul_(1.5).requires_grad_()

    later = [(draw(len(ROWS), groups, SIZE), draw(len(ROWS), groups, SIZE)) for _ in range(steps)]
    everywhere = (len(PACKING.positions), groups, SIZE)
    return draw(len(ROWS), HEADS, SIZE), draw(*everywhere), draw(*everywhere), later


@pytest.mark.parametrize("groups", [HEADS, GROUPS, 1])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_equals_the_masked_softmax_forward_and_backward(kernel, steps, groups):
    q, k, v, later = inputs(steps, groups)
    out, wanted = unrolled_attention(q, k, v, later, PLACES), reference(q, k, v, later, PLACES)
    torch.testing.assert_close(out, wanted, **CLOSE)
    leaves = [q, k, v, *(tensor for pair in later for tensor in pair)]
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradients, expected = (torch.autograd.grad(x, leaves, direction) for x in (out, wanted))
    torch.testing.assert_close(gradients, expected, **CLOSE)


def test_strong_scores_do_not_overflow(kernel):
    q, k, v, later = inputs(2, GROUPS)
    out = unrolled_attention(q * 200, k, v, later, PLACES)
    torch.testing.assert_close(out, reference(q * 200, k, v, later, PLACES), rtol=1e-3, atol=1e-3)


def test_a_row_sees_no_later_place_and_no_other_sequence(kernel):
    q, k, v, later = inputs(1, GROUPS)
    out = unrolled_attention(q, k, v, later, PLACES)
    row = 2  # place 3 of the first sequence
    by_key = torch.autograd.grad(out[row].sum(), k, retain_graph=True)[0]
    assert by_key[:4].abs().min() > 0
    assert by_key[4:].abs().max() == 0
    by_later = torch.autograd.grad(out[row].sum(), later[0][0])[0]
    assert by_later.abs().amax((1, 2)).nonzero().flatten().tolist() == [row]
