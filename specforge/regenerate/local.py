"""The engine in this process: transformers' `generate` in fixed batches, for small targets."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from specforge.config.steps import Regenerate
from specforge.data.answers import read_frame, take_apart
from specforge.data.template import Chat, Refused
from specforge.errors import UserError
from specforge.files import digest
from specforge.regenerate.engine import Block, Completion, Dialogue, Record
from specforge.regenerate.reasoning import START, split_reasoning
from specforge.target.file import TargetFile
from specforge.target.model import default_device

WINDOW_BATCHES = 16
THINK_TOKENS = 16  # enough for <think> in pieces, and a line break

Prompt = tuple[Dialogue, list[int]]


class LocalEngine:
    """Every output is a function of records and settings, wherever an earlier run was killed.

    A sampled token depends on the whole batch, so batches are cut from a block of the input alone, never from what
    is still to do, and a batch of which anything is missing is generated again as a whole.
    """

    repeatable = True

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, settings: Regenerate, chat: Chat | None = None):
        self.chat = chat or Chat()
        self.chat.dress(tokenizer)
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.end_ids = _end_ids(model, tokenizer)
        added = tokenizer.added_tokens_decoder
        self.special = {number: token.content for number, token in added.items() if token.special}
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # What is unset in a call comes from the model's own file, which may cut to the top k or penalise.
        model.generation_config = _sampling(settings, self.end_ids, tokenizer.pad_token_id)

    @classmethod
    def load(cls, target: TargetFile, settings: Regenerate, chat: Chat | None = None) -> "LocalEngine":
        """On the GPU in bfloat16 where there is one, else on the CPU in float32."""
        device = default_device()
        model = target.load(torch.bfloat16 if device.type == "cuda" else torch.float32, device)
        return cls(model, target.tokenizer(), settings, chat)

    def run(self, blocks: Iterable[Block]) -> Generator[Record, None, None]:
        """See Engine. The rows of a batch come together."""
        for block in blocks:
            for batch in self._batches(block.records):
                if any(record["id"] not in block.done for record in batch):
                    yield from [row for row in self._converse(batch) if row["id"] not in block.done]

    def _batches(self, records: Iterable[Record]) -> Iterator[list[Record]]:
        """Alike conversations share a batch: fewer padded positions, fewer rows that wait."""
        size, records = self.settings.batch_size, iter(records)
        while window := list(islice(records, size * WINDOW_BATCHES)):
            window.sort(key=_extent)
            yield from (window[start : start + size] for start in range(0, len(window), size))

    def _converse(self, batch: Sequence[Record]) -> list[Record]:
        dialogues = [Dialogue(record, self.settings.keep_truncated) for record in batch]
        turn = 0
        while due := [dialogue for dialogue in dialogues if dialogue.due]:
            prompts = [(dialogue, ids) for dialogue in due if (ids := self._prompt(dialogue))]
            prompts.sort(key=self._room, reverse=True)
            for room, group in groupby(prompts, key=self._room):
                self._say(list(group), room, turn)
            turn += 1
        return [dialogue.row() for dialogue in dialogues]

    def _prompt(self, dialogue: Dialogue) -> list[int] | None:
        """Token ids up to the answer; fails the dialogue when there are none or no room is left."""
        try:
            text = self.chat.render(self.tokenizer, dialogue.messages(), dialogue.tools)
        except Refused as error:
            dialogue.fail(str(error))
            return None
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self.context is not None and len(ids) >= self.context:
            dialogue.fail(f"the prompt has {len(ids)} tokens and leaves no room in the target's {self.context}")
            return None
        return ids

    def _room(self, prompt: Prompt) -> int:
        if self.context is None:
            return self.settings.max_tokens
        return min(self.settings.max_tokens, self.context - len(prompt[1]))

    def _say(self, prompts: Sequence[Prompt], room: int, turn: int) -> None:
        """One turn of dialogues that may all say up to `room` tokens."""
        identities = [dialogue.record["id"] for dialogue, _ in prompts]
        torch.manual_seed(int(digest(self.settings.seed, identities, turn), 16) >> 1)
        for (dialogue, prompt), ids in zip(prompts, self._generate([ids for _, ids in prompts], room), strict=True):
            try:
                said = self._completion(dialogue, ids, self._thinks(prompt))
                dialogue.answer(said._replace(prompt_tokens=len(prompt)))
            except Refused as error:
                dialogue.fail(str(error))

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[list[int]], room: int) -> list[list[int]]:
        ids, mask = _pad_left(prompts, self.model.generation_config.pad_token_id)
        try:
            output = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=room,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU's memory is too small for {len(prompts)} conversations of {ids.shape[1] + room} "
                "tokens at once; lower regenerate.batch_size."
            ) from error
        return output[:, ids.shape[1] :].tolist()

    def _thinks(self, prompt: list[int]) -> bool:
        """Whether the template lets the target begin in the middle of its reasoning."""
        return self.tokenizer.decode(prompt[-THINK_TOKENS:]).rstrip().endswith(START)

    def _completion(self, dialogue: Dialogue, ids: list[int], thinks: bool) -> Completion:
        """Cuts at the first end token: what follows is padding."""
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), None)
        said = ids[:end]
        if self.special.keys() & said:
            reasoning, text = self._framed(dialogue, said, thinks)
        else:
            reasoning, text = split_reasoning(self.tokenizer.decode(said), thinks)
        reason, tokens = ("length", len(ids)) if end is None else ("stop", end + 1)
        return Completion(text, reason, tokens, reasoning, token_ids=ids[:tokens])

    def _framed(self, dialogue: Dialogue, said: list[int], thinks: bool) -> tuple[str, str]:
        """(reasoning, answer) of ids with special tokens, such as those of channels.

        Where the template writes such tokens in an answer, they take it apart. Else those that mark turns are left
        out. Raises Refused when others are left: a call of a tool, or a channel, would become plain words.
        """
        messages, tools = dialogue.messages(), dialogue.tools
        plain, thinking = (read_frame(self._render, messages, tools, "", reasoned) for reasoned in (False, True))
        words = plain.middle + thinking.opening + thinking.middle
        found = {number: self.special[number] for number in said if number in self.special}
        if any(text in words for text in self.special.values()):
            parts = take_apart(self.tokenizer.decode(said), plain, thinking)
            left = [text for text in found.values() if text in parts[0] + parts[1]]
        else:
            marks = self._turn_marks(messages, tools)
            parts = split_reasoning(self.tokenizer.decode([number for number in said if number not in marks]), thinks)
            left = [text for number, text in found.items() if number not in marks]
        if left:
            raise Refused(
                f"the target says {left[0]} within an answer, which regenerate.engine transformers cannot take "
                "apart; set regenerate.engine to sglang."
            )
        return parts

    def _turn_marks(self, messages: list[Record], tools: list[Record] | None) -> set[int]:
        """Special tokens that say nothing within an answer: what the template begins one with, and ends of text."""
        told, asked = (self._render(messages, tools, prompt) for prompt in (False, True))
        opening = asked[len(told) :] if asked.startswith(told) else ""
        one = self.tokenizer
        named = {one.bos_token_id, one.eos_token_id, one.pad_token_id, one.unk_token_id, *self.end_ids}
        return named | {number for number, text in self.special.items() if text in opening}

    def _render(self, messages: list[Record], tools: list[Record] | None, prompt: bool) -> str:
        return self.chat.render(self.tokenizer, messages, tools, prompt)


def _extent(record: Record) -> tuple[int, int]:
    """Number of answers, then characters before the first."""
    turns = record["conversations"]
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    return len(answers), sum(len(turn["content"]) for turn in turns[: answers[0] if answers else None])


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    named = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not ids:
        raise UserError(f"target {tokenizer.name_or_path} names no end token; set eos_token_id in its files.")
    return sorted(ids)


def _sampling(settings: Regenerate, end_ids: list[int], pad_id: int | None) -> GenerationConfig:
    """The target's own distribution, shaped by the settings and nothing else, as in the loss."""
    cut = {"top_p": settings.top_p, "top_k": settings.top_k or 0}
    sampled = {"do_sample": True, "temperature": settings.temperature, **cut}
    return GenerationConfig(
        **(sampled if settings.temperature else {"do_sample": False}),
        eos_token_id=end_ids,
        pad_token_id=end_ids[0] if pad_id is None else pad_id,
    )


def _pad_left(prompts: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 [B, T]; the prompts end together, where generation begins."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
