"""AdamW over fp32 masters, each process keeping a share of them (ZeRO-1), and the rate at each step."""

import math

import torch
from torch import Tensor, nn

from specforge.train.parallel import Team

SLOTS = ("exp_avg", "exp_avg_sq")


def scheduled_lr(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up over `warmup_share` of `steps`, then a cosine to zero; `step` counts from 0."""
    warmup = max(1, math.ceil(steps * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class MasterAdamW:
    """AdamW whose weights are fp32 whatever the module computes in: small updates are not rounded away in bf16.

    The module's parameters become views of one flat tensor, and each backward adds its gradients to a flat fp32 one,
    so that micro-batches add up without further rounding. Of masters and moments each process keeps its share
    (Rajbhandari et al. 2020, ZeRO stage 1): gradients are reduce-scattered, new weights gathered.
    """

    def __init__(self, module: nn.Module, betas: tuple[float, float], weight_decay: float, team: Team | None = None):
        self.team = team or Team()
        self.names, self.parameters = zip(*module.named_parameters(), strict=True)
        self.sizes = [p.numel() for p in self.parameters]
        first = self.parameters[0]
        length = -(-sum(self.sizes) // self.team.size) * self.team.size
        self.weights = torch.zeros(length, dtype=first.dtype, device=first.device)
        self.gradients = torch.zeros(length, dtype=torch.float32, device=first.device)
        for parameter, weight, gradient in zip(self.parameters, *map(self._views, self._flats), strict=True):
            weight.copy_(parameter.detach())
            parameter.data = weight
            parameter.register_post_accumulate_grad_hook(_add_to(gradient))
        self.master = self.team.share(self.weights).float().clone().requires_grad_(True)
        self.adamw = torch.optim.AdamW([self.master], lr=0.0, betas=betas, weight_decay=weight_decay, fused=True)

    @property
    def _flats(self) -> tuple[Tensor, Tensor]:
        return self.weights, self.gradients

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = flat[: sum(self.sizes)].split(self.sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def step(self, lr: float, grad_clip: float, count: float = 1.0) -> Tensor:
        """Sums the gradients of all processes over `count`, clips their norm, updates; returns the norm unclipped.

        Dividing here, in fp32, rounds nothing that a bf16 backward of a loss already divided would.
        """
        gradient = self.team.reduce_scatter(self.gradients).div_(count)
        norm = self.team.sum(gradient.square().sum()).sqrt()
        gradient.mul_((grad_clip / (norm + 1e-6)).clamp_max(1.0))
        self.master.grad = gradient
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        self.master.grad = None
        self.gradients.zero_()
        self._write_back()
        return norm

    @torch.no_grad()
    def _write_back(self) -> None:
        self.weights.copy_(self.team.all_gather(self.master.detach().to(self.weights.dtype)))

    def drop_gradients(self) -> None:
        self.gradients.zero_()

    def gradient_norm(self, team: Team, count: float) -> float:
        """Of the gradients of all of `team` together, over `count`; drops them."""
        norm = float(team.sum(self.gradients).norm()) / count
        self.gradients.zero_()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by parameter, whole, on the first process; all must ask."""
        slots = {"master": self.master.detach()} | {name: self._slot(name) for name in SLOTS}
        tensors = {"step": torch.as_tensor(self.adamw.state[self.master].get("step", 0.0)).float().cpu()}
        for slot, share in slots.items():
            whole = self.team.all_gather(share)
            if self.team.leads:
                named = zip(self.names, self._views(whole.cpu()), strict=True)
                tensors |= {f"{slot}.{name}": x for name, x in named}
        return tensors

    def _slot(self, name: str) -> Tensor:
        return self.adamw.state[self.master].get(name, torch.zeros_like(self.master))

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state`; the module's own weights follow the masters."""
        shares = {slot: self._share_of(tensors, slot) for slot in ("master", *SLOTS)}
        self.master.copy_(shares.pop("master"))
        state = {0: {"step": tensors["step"], **shares}}
        self.adamw.load_state_dict({"state": state, "param_groups": self.adamw.state_dict()["param_groups"]})
        self._write_back()

    def _share_of(self, tensors: dict[str, Tensor], slot: str) -> Tensor:
        whole = torch.zeros(len(self.weights), dtype=torch.float32)
        for view, name in zip(self._views(whole), self.names, strict=True):
            view.copy_(tensors[f"{slot}.{name}"])
        return self.team.share(whole).to(self.master.device)


def _add_to(total: Tensor):
    def add(parameter: Tensor) -> None:
        total.add_(parameter.grad)
        parameter.grad = None

    return add
