"""Held-out prompts: every point of a test conversation where the assistant is to speak."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from specforge.data.chat import ChatEncoder
from specforge.data.template import Refused
from specforge.errors import UserError
from specforge.files import read_jsonl


@dataclass(frozen=True)
class Prompt:
    id: str
    ids: Tensor  # int64 [1, n]


@dataclass
class Prompts:
    """What was chosen, and how many were passed over on the way: too long, or refused by the chat template."""

    chosen: list[Prompt] = field(default_factory=list)
    too_long: int = 0
    refused: int = 0
    first_refusal: str | None = None

    def take(self, encoder: ChatEncoder, name: str, turns: list[dict], tools: list | None, room: int) -> None:
        try:
            ids = encoder.prompt(turns, tools)
        except Refused as error:
            self.refused += 1
            self.first_refusal = self.first_refusal or f"{name}: {error}"
            return
        if len(ids) > room:
            self.too_long += 1
        else:
            self.chosen.append(Prompt(name, torch.tensor([ids])))


def read_prompts(path: Path, encoder: ChatEncoder, count: int, room: int) -> Prompts:
    """The first `count` prompts of at most `room` tokens that the chat template takes.

    The history before each is the file's own, so all runs of a sweep see the same prompts.
    Raises UserError when fewer than two fit.
    """
    prompts = Prompts()
    for row in read_jsonl(path):
        for index, turn in enumerate(row["conversations"]):
            if turn["role"] == "assistant" and len(prompts.chosen) < count:
                turns = row["conversations"][:index]
                prompts.take(encoder, f"{row['id']}/{index}", turns, row.get("tools"), room)
    if len(prompts.chosen) < 2:
        refused = f", {prompts.refused} refused, first {prompts.first_refusal}" if prompts.refused else ""
        raise UserError(
            f"{path} has {len(prompts.chosen)} prompts of at most {room} tokens ({prompts.too_long} longer{refused}), "
            "too few to evaluate on; raise prepare.test_share or sample_size, lower evaluate.max_new_tokens, or choose "
            "another chat_template."
        )
    return prompts
