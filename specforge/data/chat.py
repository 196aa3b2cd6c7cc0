"""Conversations to token ids as a server sees them: prompt ids, then the completion's own ids and end token.

No regular expression over rendered text and no assistant mask of the template (stock templates have none). A
template that rewrites history (Qwen3 drops earlier thinking) makes the next prompt differ from what came before;
the conversation is then split there, each part with the prompt that the server would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specforge.errors import UserError


@dataclass
class Sequence:
    """Token ids, which of them are supervised (the assistant's), and where turns may be cut."""

    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)

    def extend(self, ids: list[int], supervised: bool) -> None:
        self.ids += ids
        self.mask += [supervised] * len(ids)

    def cut(self, max_length: int) -> bool:
        """Shortens to `max_length`, at a turn's end when that keeps one; says whether anything went."""
        if len(self.ids) <= max_length:
            return False
        end = max((end for end in self.turn_ends if end <= max_length), default=max_length)
        del self.ids[end:], self.mask[end:]
        return True


class ChatEncoder:
    """A tokenizer with its chat template, or another template in its place."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None):
        self.tokenizer = tokenizer
        if chat_template is not None:
            path = Path(chat_template)
            if not path.is_file():
                raise UserError(f"preprocess.chat_template: {chat_template} is not a file; name a Jinja template.")
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        if not tokenizer.chat_template:
            raise UserError("The target's tokenizer has no chat template; name one in preprocess.chat_template.")
        if tokenizer.eos_token_id is None:
            raise UserError("The target's tokenizer has no end token; choose a chat model as target_model.")

    def prompt(self, messages: list[dict]) -> list[int]:
        """Ids of the prompt that asks for the next assistant turn."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def completion(self, turn: dict) -> list[int]:
        """Ids of an assistant turn; the end token unless the turn was cut by its length limit."""
        ids = self.tokenizer.encode(turn["content"], add_special_tokens=False)
        return ids if turn.get("finish_reason") == "length" else [*ids, self.tokenizer.eos_token_id]

    def sequences(self, turns: list[dict]) -> Iterator[Sequence]:
        """One sequence for a conversation, or several where its template does not keep the prefix."""
        sequence = Sequence()
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = self.prompt(turns[:index])
            if sequence.ids and prompt[: len(sequence.ids)] == sequence.ids:
                prompt = prompt[len(sequence.ids) :]
            elif sequence.ids:
                yield sequence
                sequence = Sequence()
            sequence.extend(prompt, False)
            sequence.extend(self.completion(turn), True)
            sequence.turn_ends.append(len(sequence.ids))
        if sequence.ids:
            yield sequence
