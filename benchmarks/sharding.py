"""Our sharded optimizer (ZeRO-1) against PyTorch's FSDP2 around the same training step, on the GPUs of one machine.

    torchrun --standalone --nproc_per_node 2 benchmarks/sharding.py

Qwen3-8B's shapes, 4 x 2048 tokens a GPU, half of them supervised; features and final states given. Both keep fp32
masters and moments in shares and compute in bf16. The table has medians over rounds.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from exchange import Request
from ours import Case
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from training_step import SETUPS, tensors_of

from specforge.train.optim import MasterAdamW
from specforge.train.parallel import Team, team

ROUNDS, STEPS, WARMUP, LR, CLIP = 3, 8, 4, 1e-5, 0.5
Step = Callable[[], torch.Tensor]


def case_on(crew: Team, dtype: str) -> Case:
    setup = SETUPS["cuda"]
    request = Request(setup.config, **setup.request | {"device": str(crew.device)})
    tensors = {name: tensor.to(crew.device) for name, tensor in tensors_of(setup).items()}
    case = Case(tensors, request)
    case.draft.to(getattr(torch, dtype))
    return case


def zero1(crew: Team) -> Step:
    case = case_on(crew, "bfloat16")
    optimizer = MasterAdamW(case.draft, (0.9, 0.95), 0.0, crew)
    count = crew.size * case.batch.mask.sum().item()

    def step() -> torch.Tensor:
        loss = case.loss() / count
        loss.backward()
        optimizer.step(LR, CLIP)
        return loss.detach()

    return step


class Whole(nn.Module):
    """The whole loss as one forward, which is where FSDP gathers the weights."""

    def __init__(self, case: Case):
        super().__init__()
        self.draft, self.loss = case.draft, case.loss

    def forward(self, _: torch.Tensor) -> torch.Tensor:  # FSDP's hook wants an argument to move to the device
        return self.loss()


def fsdp2(crew: Team) -> Step:
    case = case_on(crew, "float32")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = fully_shard(Whole(case), mp_policy=policy, reshard_after_forward=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    count = case.batch.mask.sum().item()  # FSDP averages over processes
    nothing = torch.zeros((), device=crew.device)

    def step() -> torch.Tensor:
        loss = model(nothing) / count
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach() / crew.size

    return step


def seconds(step: Step, repeats: int) -> float:
    torch.cuda.synchronize()
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    with team() as crew:
        tokens = crew.size * SETUPS["cuda"].batch * SETUPS["cuda"].length
        lines = [
            f"| {crew.size} x {torch.cuda.get_device_name()} | tokens/s | spread | peak GiB | loss |",
            "|---|---|---|---|---|",
        ]
        for name, make in (("ZeRO-1, ours", partial(zero1, crew)), ("FSDP2", partial(fsdp2, crew))):
            step = make()
            seconds(step, WARMUP)
            torch.cuda.reset_peak_memory_stats()
            rates = [tokens / seconds(step, STEPS) for _ in range(ROUNDS)]
            peak, loss = torch.cuda.max_memory_allocated() / 2**30, crew.sum(step()).item()
            median = sorted(rates)[ROUNDS // 2]
            lines.append(f"| {name} | {median:.0f} | {min(rates):.0f} to {max(rates):.0f} | {peak:.1f} | {loss:.4f} |")
            del step
            torch.cuda.empty_cache()
        if crew.leads:
            sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
