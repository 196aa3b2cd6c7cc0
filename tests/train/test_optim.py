"""The sharded optimizer against PyTorch's own parts, and the schedule against its definition."""

import math

import pytest
import torch
from torch import nn

from specforge.train.optim import MasterAdamW, scheduled_lr


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


@pytest.mark.parametrize("clip", [1e9, 0.01])
def test_steps_are_those_of_adamw_with_clipped_gradients(clip):
    ours, theirs = model(), model()
    optimizer = MasterAdamW(ours, (0.9, 0.95), 0.1)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(5):
        x, lr = torch.randn(4, 5, generator=generator), 0.01 * (step + 1)
        for half in x.split(2):  # two micro-batches, a sum each
            ours(half).pow(2).sum().backward()
        norm = optimizer.step(lr, clip, count=12)
        reference.zero_grad()
        theirs(x).pow(2).mean().backward()
        wanted = nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        reference.param_groups[0]["lr"] = lr
        reference.step()
        torch.testing.assert_close(norm, wanted)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


def test_bf16_weights_follow_fp32_masters_through_small_updates():
    module = nn.Linear(4, 4, bias=False).bfloat16()
    before = module.weight.detach().clone()
    optimizer = MasterAdamW(module, (0.9, 0.95), 0.0)
    for _ in range(400):  # each update is far below what bf16 resolves at these weights
        module(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(1e-5, 1e9)
    assert (module.weight.float() - before.float()).mean().item() == pytest.approx(-400 * 1e-5, rel=0.2)


def test_the_rate_warms_up_and_falls_as_a_cosine_to_zero():
    rates = [scheduled_lr(step, 100, 2.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (n + 1) for n in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
