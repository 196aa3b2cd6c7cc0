"""AdamW over fp32 masters, and the rate at each step."""

import math

import torch
from torch import Tensor, nn

from specforge.train.resume import load_optimizer, optimizer_tensors


def scheduled_lr(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up over `warmup_share` of `steps`, then a cosine to zero; `step` counts from 0."""
    warmup = max(1, math.ceil(steps * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class MasterAdamW:
    """AdamW whose weights are fp32 whatever the module computes in: small updates are not rounded away in bf16."""

    def __init__(self, module: nn.Module, betas: tuple[float, float], weight_decay: float):
        self.names, self.parameters = zip(*module.named_parameters(), strict=True)
        self.masters = [p.detach().float().clone().requires_grad_(True) for p in self.parameters]
        self.adamw = torch.optim.AdamW(self.masters, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True)

    def step(self, lr: float, grad_clip: float) -> Tensor:
        """Takes the module's gradients, clips their norm, updates masters and module; returns the norm unclipped."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        norm = nn.utils.clip_grad_norm_(self.masters, grad_clip)
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        self._write_back()
        return norm

    @torch.no_grad()
    def _write_back(self) -> None:
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            parameter.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, all that a resumed run needs."""
        masters = {f"master.{name}": master for name, master in zip(self.names, self.masters, strict=True)}
        return masters | optimizer_tensors(self.adamw)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state`; the module's own weights follow the masters."""
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(tensors[f"master.{name}"])
        load_optimizer(self.adamw, tensors)
        self._write_back()
