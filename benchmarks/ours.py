"""Our training step on what `exchange.ask` asks: features and final states given, teacher, unroll, losses, AdamW."""

import sys
from pathlib import Path

import torch
from exchange import Request, answer, read_request, timed
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig

from specforge.model.draft import Draft
from specforge.train.batches import Batch
from specforge.train.cost import Work, draft_flops, peak_rate
from specforge.train.losses import LossWeights
from specforge.train.measure import placed
from specforge.train.optim import MasterAdamW
from specforge.train.parallel import Team
from specforge.train.unroll import Objective, Observed, Plan, teach, unrolled_loss


class Head:
    """As much of a target as the teacher needs."""

    def __init__(self, weight: Tensor):
        self.weight, self.vocab_size = weight, len(weight)

    def head(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight)


class Case:
    """The tensors of a request as our step takes them: packed, without the padding."""

    def __init__(self, tensors: dict[str, Tensor], request: Request):
        dtype, device = getattr(torch, request.dtype), torch.device(request.device)
        taken = {name: tensors.pop(name) for name in ("input_ids", "attention_mask", "loss_mask")}
        self.features, self.final, head, self.embedding = (
            tensors.pop(name).to(dtype) for name in ("features", "target_hidden", "target_head", "embed_tokens.weight")
        )
        here = taken["attention_mask"].bool()
        self.features, self.final = self.features[here], self.final[here]
        rows = [
            (ids[kept], mask[kept])
            for ids, mask, kept in zip(taken["input_ids"], taken["loss_mask"], here, strict=True)
        ]
        packed = {"id": range(len(rows)), "input_ids": [i.cpu().numpy() for i, _ in rows]}
        packed["loss_mask"] = [m.bool().cpu().numpy() for _, m in rows]
        self.batch, self.target, self.device = Batch.pack(packed), Head(head), device
        self.draft = Draft(LlamaConfig.from_dict(request.config), tensors.pop("d2t"), tensors.pop("t2d"))
        self.draft.load_state_dict(tensors, strict=False)
        self.draft.to(device, dtype)
        self.objective = Objective(LossWeights(lambda_ce=1.0), request.ttt_length, request.decay, 1.0)

    def loss(self, told: list[Tensor] | None = None) -> Tensor:
        """Sum over supervised tokens of the decayed cross-entropy."""
        batch, plan = placed(self.batch, self.objective, self.device)
        teacher = teach(self.target, self.final.index_select(0, plan.taught), self.draft.target_ids, 1.0)
        embed, observed = (lambda ids: F.embedding(ids, self.embedding)), Observed(self.features, teacher)
        return unrolled_loss(self.draft, embed, batch, plan, observed, self.objective, told)

    def flops(self) -> float:
        plan = Plan.of(self.batch, self.objective.ttt_length)
        squares = int(self.batch.packing.starts.diff().long().square().sum())
        work = Work(len(self.batch.ids), len(plan.places.index), plan.states, len(plan.taught), squares)
        return draft_flops(self.draft.config, self.target.vocab_size, work, self.objective.ttt_length)


def main(asked: Path, answered: Path) -> None:
    request, tensors = read_request(asked)
    device = torch.device(request.device)
    case = Case(tensors, request)
    if not request.repeats:
        told: list[Tensor] = []
        case.loss(told).backward()
        found = {name: p.grad.cpu() for name, p in case.draft.named_parameters()}
        answer(answered, request, found | {"losses": torch.stack([step[0] for step in told]).cpu()})
        return
    optimizer = MasterAdamW(case.draft, (0.9, 0.95), 0.0, Team(device=device))

    def step() -> None:
        case.loss().backward()
        if request.optimizer:
            optimizer.step(1e-6, 0.5)
        else:
            optimizer.drop_gradients()

    found = {"seconds": timed(step, request), "flops": torch.tensor(case.flops(), dtype=torch.float64)}
    peak = peak_rate(device)
    answer(answered, request, found | ({"peak_rate": torch.tensor(peak, dtype=torch.float64)} if peak else {}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
