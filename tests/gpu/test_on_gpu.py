"""What runs on a GPU alone, against the same on the CPU in higher precision. Skipped where there is none."""

import pytest
import torch
from tiny_draft import random_draft, random_target

from specforge.model.attention import UnrolledAttention
from specforge.model.flash import CudaFlash, Places, kernel_for
from specforge.model.packing import Packing
from specforge.train.batches import Batch
from specforge.train.head import distillation_loss, new_figures
from specforge.train.losses import LossWeights, teacher_from_logits
from specforge.train.measure import forward
from specforge.train.unroll import Objective

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
ALL = LossWeights(0.4, 0.5, 0.1, 0.3, 0.2, 0.7, 1.5)
ONES = [LossWeights(**{name: 1.0}) for name in ("lambda_ce", "lambda_rkl", "beta_hinge", "lambda_tv")]
LK = [LossWeights(lambda_lk_alpha=1.0), LossWeights(lambda_lk_lambda=1.0)]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    found = found.cpu().double()
    assert found.isfinite().all()
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("weights", [*ONES, *LK, ALL], ids=str)
@pytest.mark.parametrize("kept", [37, 5000])
def test_the_loss_kernel_is_the_written_out_loss(weights, kept):
    count, width, vocab, temperature = 50, 16, kept + 100, 0.7
    target_ids = torch.arange(kept) + 50
    hidden, weight, logits = normal(count, width), normal(kept, width, seed=1), normal(30, vocab, seed=2, scale=2.0)
    rows, scale = torch.arange(count) % 30, torch.linspace(0.5, 1.5, count, dtype=torch.float64)
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        h, w = (x.to(device, dtype).requires_grad_() for x in (hidden, weight))
        teacher = teacher_from_logits(logits.to(device, dtype), target_ids.to(device), temperature)
        told = new_figures(teacher.log_norm, count)
        torch.backends.cuda.matmul.allow_tf32 = False
        loss = distillation_loss(h, w, teacher, rows.to(device), scale.to(device, dtype), weights, told)
        results.append((loss.detach(), *torch.autograd.grad(loss, (h, w)), told))
    for wanted, found in zip(*results, strict=True):
        assert error(found, wanted) < 1e-4


@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_unrolled_attention_in_bf16_is_close_to_fp64(groups, steps):
    lengths, heads, size = [300, 1, 77], 8, 64
    rows = torch.arange(0, sum(lengths), 3)
    q, k, v = normal(len(rows), heads, size), normal(378, groups, size, seed=1), normal(378, groups, size, seed=2)
    later = [
        (normal(len(rows), groups, size, seed=3 + i), normal(len(rows), groups, size, seed=9 + i)) for i in range(steps)
    ]
    direction = normal(len(rows), heads, size, seed=99)
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.bfloat16)):
        leaves = [x.to(device, dtype).requires_grad_() for x in (q, k, v, *(x for pair in later for x in pair))]
        pairs = list(zip(leaves[3::2], leaves[4::2], strict=True))
        places = Places(rows.to(device), Packing.of(lengths, device))
        attend = UnrolledAttention(places)
        out = attend(*leaves[:3])
        for pair in pairs:
            out = attend(leaves[0], *pair)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, direction.to(device, dtype))))
    assert kernel_for(leaves[0]) is CudaFlash
    for wanted, found in zip(*results, strict=True):
        assert error(found, wanted) < 2e-2


def test_a_step_in_bf16_is_close_to_fp64():
    kept, lengths = torch.arange(0, 40, 2), [50, 31]
    ids = [torch.randint(40, (n,), generator=torch.Generator().manual_seed(n)).numpy() for n in lengths]
    masks = [(torch.arange(n) % 16 > 6).numpy() for n in lengths]
    objective = Objective(ALL, 7, 0.8, 1.0)
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.bfloat16)):
        target = random_target(40, dtype)
        target.model.to(device)
        draft = random_draft(target, kept).to(device)
        batch = Batch.pack({"id": [0, 1], "input_ids": ids, "loss_mask": masks})
        loss = forward(draft, target, batch, objective)
        results.append(
            (loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, tuple(draft.parameters()))]))
        )
    (wanted, gradient), (found, by_gpu) = results
    assert error(found, wanted) < 2e-2
    assert error(by_gpu, gradient) < 0.1
