"""Held-out prompts: every point of a test conversation where the assistant is to speak."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specforge.data.chat import ChatEncoder
from specforge.errors import UserError
from specforge.files import read_jsonl


@dataclass(frozen=True)
class Prompt:
    id: str
    ids: Tensor  # int64 [1, n]


def read_prompts(path: Path, encoder: ChatEncoder, count: int, room: int) -> tuple[list[Prompt], int]:
    """The first `count` prompts of at most `room` tokens, and how many longer ones were passed over on the way.

    The history before each is the file's own, so all runs of a sweep see the same prompts.
    Raises UserError when fewer than two fit.
    """
    prompts: list[Prompt] = []
    skipped = 0
    for row in read_jsonl(path):
        for index, turn in enumerate(row["conversations"]):
            if turn["role"] != "assistant" or len(prompts) == count:
                continue
            ids = encoder.prompt(row["conversations"][:index], row.get("tools"))
            if len(ids) > room:
                skipped += 1
            else:
                prompts.append(Prompt(f"{row['id']}/{index}", torch.tensor([ids])))
    if len(prompts) < 2:
        raise UserError(
            f"{path} has {len(prompts)} prompts of at most {room} tokens ({skipped} longer), too few to evaluate on; "
            "raise prepare.test_share or sample_size, or lower evaluate.max_new_tokens."
        )
    return prompts, skipped
