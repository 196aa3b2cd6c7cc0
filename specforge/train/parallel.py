"""The processes that train one draft together: torchrun's environment, or this process alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

# Renamed in PyTorch 2.13, where the older names warn.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Team:
    """`size` processes, this one being `rank`, each with its `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """In place, over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def least(self, value: int) -> int:
        """The smallest of all processes' values."""
        if self.size == 1:
            return value
        values = torch.tensor(value, device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MIN)
        return int(values)

    def share(self, flat: Tensor) -> Tensor:
        """This process's equal part of a flat tensor whose length is a multiple of `size`; a view."""
        return flat.view(self.size, -1)[self.rank]

    def reduce_scatter(self, flat: Tensor) -> Tensor:
        """This process's share of the sum of `flat` over all; `flat` is spent."""
        if self.size == 1:
            return flat
        if self.device.type == "cpu":  # gloo has no reduce-scatter
            return self.share(self.sum(flat))
        out = torch.empty_like(self.share(flat))
        _reduce_scatter(out, flat)
        return out

    def all_gather(self, share: Tensor) -> Tensor:
        """The shares of all processes, one after the other."""
        if self.size == 1:
            return share
        out = share.new_empty(self.size * len(share))
        _all_gather(out, share.contiguous())
        return out


@contextmanager
def team() -> Iterator[Team]:
    """The team that torchrun started this process in; a team of one on the first GPU or the CPU otherwise."""
    gpu = torch.cuda.is_available()
    if "RANK" not in os.environ:
        yield Team(device=torch.device("cuda:0" if gpu else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", device_id=device if gpu else None)
    yield Team(dist.get_rank(), dist.get_world_size(), device)
    dist.destroy_process_group()  # not after an error: it could wait for processes that are in a collective
