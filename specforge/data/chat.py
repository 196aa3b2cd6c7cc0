"""Conversations to token ids as a server sees them: prompt ids, then the completion's own ids and end token.

No regular expression over rendered text and no assistant mask of the template (stock templates have none). A
template that rewrites history (Qwen3 drops earlier thinking) makes the next prompt differ from what came before;
the conversation is then split there, each part with the prompt that the server would have seen.

Where the next prompt's text begins with all that came before and the answer's end token is one that text may be cut
at (`safe_cuts`), only what is new is encoded; that gives the ids of the whole, and takes one pass over the text.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from specforge.data.answers import (
    REASONING_KEYS,
    Frame,
    came_to_end,
    common_start,
    completion,
    learnt_of_call,
    read_frame,
)
from specforge.data.encoding import TextEncoder, safe_cuts
from specforge.data.template import Chat, Refused, history, template_source
from specforge.data.tool_calls import function_names
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
        self.turn_ends = [place for place in self.turn_ends if place <= end]
        return True


class Answer(NamedTuple):
    """One answer to encode.

    `prompt` is the whole text before it; `joined` what of that follows the answer before, from its end token on, or
    None where it has to be encoded whole. `tail` is the prompt's end from its last cut on, "" without one. `end` is
    the end token's id, None when the answer did not come to its end. `given` is the length of the prompt in tokens as
    the engine that was asked said, None where it did not. `sampled` are the ids that the target said, without the end
    token, where the engine told them.
    """

    prompt: str
    joined: str | None
    tail: str
    text: str
    learnt_from: int
    end: int | None
    given: int | None = None
    sampled: list[int] | None = None


class ChatEncoder:
    """A tokenizer with the chat template that all steps share. `end_ids` end a turn besides the tokenizer's own."""

    def __init__(
        self, tokenizer: Any, chat: Chat | None = None, end_ids: Iterable[int] = (), train_on_reasoning: bool = True
    ):
        self.tokenizer, self.chat, self.train_on_reasoning = tokenizer, chat or Chat(), train_on_reasoning
        self.chat.dress(tokenizer)
        self.end_ids = [token for token in dict.fromkeys([*end_ids, tokenizer.eos_token_id]) if token is not None]
        if not self.end_ids:
            raise UserError("The target's tokenizer has no end token; choose a chat model as target_model.")
        self.encode = TextEncoder(tokenizer)
        self._source = template_source(tokenizer)
        self.cuts = safe_cuts(tokenizer, self._source, self.end_ids)
        self.counts: Counter[str] = Counter()
        self._frames: dict[tuple, Frame] = {}
        self._ends: dict[str, int] = {}
        self._calls: set[int] = set()
        self._tails: dict[str, list[int]] = {}

    def render(self, messages: list[dict], tools: list | None = None, prompt: bool = True) -> str:
        return self.chat.render(self.tokenizer, messages, tools, prompt)

    def prompt(self, messages: list[dict], tools: list | None = None) -> list[int]:
        """Ids of the prompt that asks for the next assistant turn."""
        return self.encode.one(self.render(history(messages), tools))

    def sequences(self, turns: list[dict], tools: list | None = None) -> Iterator[Sequence]:
        """One sequence for a conversation, or several where its template does not keep the prefix.

        Raises Refused when the template does not take the conversation.
        """
        answers = self.answers(turns, tools)
        return self._assemble(answers, iter(self.encode([text for answer in answers for text in pieces(answer)])))

    def encode_all(self, records: list[dict]) -> list[list[Sequence] | str]:
        """The sequences of each record, all encoded in one call; a sentence where the template refuses one."""
        plans: list[list[Answer] | str] = []
        for record in records:
            try:
                plans.append(self.answers(record["conversations"], record.get("tools")))
            except Refused as error:
                plans.append(str(error))
        texts = [text for plan in plans if not isinstance(plan, str) for answer in plan for text in pieces(answer)]
        ids = iter(self.encode(texts))
        return [plan if isinstance(plan, str) else list(self._assemble(plan, ids)) for plan in plans]

    def take_counts(self) -> Counter[str]:
        """What was noticed since the last call, by the names of a Tally's fields."""
        taken, self.counts = self.counts, Counter()
        return taken

    def answers(self, turns: list[dict], tools: list | None) -> list[Answer]:
        """What there is to encode of a conversation. A turn of tool calls is learnt where its template keeps it."""
        found: list[Answer] = []
        messages = history(turns)
        before = None  # the text up to and with the last answer's end token, where text may be cut behind it
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = self.render(messages[:index], tools)
            tail = self._tail(prompt)
            said = self._said(turn, messages[: index + 1], tools, prompt, tail)
            if said is None:
                self.counts["skipped_calls"] += 1
                continue
            text, learnt_from, end, ended = said
            sampled = turn.get("token_ids")
            if sampled and ended and sampled[-1] in (*self.end_ids, end):
                sampled, end = sampled[:-1], sampled[-1]
            follows = before is not None and prompt.startswith(before[0] + before[1])
            joined = prompt[len(before[0]) :] if follows else None
            given = turn.get("prompt_tokens")
            found.append(Answer(prompt, joined, tail, text, learnt_from, end if ended else None, given, sampled))
            spelled = self.tokenizer.convert_ids_to_tokens(end)
            before = (prompt + text, spelled) if tail and spelled in self.cuts else None
        return found

    def _said(
        self, turn: dict, messages: list[dict], tools: list | None, prompt: str, tail: str
    ) -> tuple[str, int, int, bool] | None:
        """Text of the completion, where learning starts in it, its end token, whether it ended."""
        plain = self._frame(messages[:-1], tools, tail, False)
        thinking = self._frame(messages[:-1], tools, tail, True)
        if turn.get("tool_calls"):
            in_words = self._call(turn, messages, tools, prompt, plain, thinking)
            if in_words is None and turn.get("token_ids") and (self.train_on_reasoning or not turn.get("reasoning")):
                return "", 0, self._end(plain), came_to_end(turn)
            return in_words
        words = completion(turn, plain, thinking, self.train_on_reasoning)
        return words.text, words.learnt_from, self._end(plain), words.ended

    @property
    def ends_used(self) -> set[int]:
        """The end tokens of the answers so far."""
        return set(self._ends.values()) | self._calls

    def _call(
        self, turn: dict, messages: list[dict], tools: list | None, prompt: str, plain: Frame, thinking: Frame
    ) -> tuple[str, int, int, bool] | None:
        """A turn of tool calls in the template's words.

        None where these do not continue the prompt, or leave out a call or what the turn says or thinks beside it.
        """
        if reasoning := (turn.get("reasoning") or "").strip("\n"):
            messages = [*messages[:-1], messages[-1] | dict.fromkeys(REASONING_KEYS, reasoning)]
        whole = self.render(messages, tools, False)
        spelled = {token: self.tokenizer.convert_ids_to_tokens(token) for token in (*self.end_ids, self._end(plain))}
        places = {whole.rfind(text, len(prompt)): token for token, text in spelled.items()}
        place = max(places)
        if place < 0 or not whole.startswith(prompt):
            return None
        text = whole[len(prompt) : place]
        if not _says_all(text, messages[-1]):
            return None
        self._calls.add(places[place])
        learnt_from = learnt_of_call(text, turn, plain, thinking, self.train_on_reasoning)
        return text, learnt_from, places[place], came_to_end(turn)

    def _frame(self, messages: list[dict], tools: list | None, tail: str, reasoned: bool) -> Frame:
        """Read once for each kind of turn that an answer follows."""
        key = (messages[-1]["role"] if messages else None, bool(tools), tail, reasoned)
        if key not in self._frames:
            self._frames[key] = read_frame(self.render, messages, tools, tail, reasoned)
        return self._frames[key]

    def _end(self, plain: Frame) -> int:
        """The special token that the template ends an answer with, else the first that the target may end with."""
        if plain.after not in self._ends:
            first = self.encode.one(plain.after.lstrip())[:1]
            special = first and (first[0] in self.end_ids or first[0] in self.tokenizer.all_special_ids)
            self._ends[plain.after] = first[0] if special else self.end_ids[-1]
        return self._ends[plain.after]

    def _tail(self, prompt: str) -> str:
        """The prompt's end from its last cut on; "" when it has none, or holds more than the template's own words."""
        known = next((tail for tail in self._tails if prompt.endswith(tail)), None)
        if known is not None:
            return known
        place, last = max(((prompt.rfind(text), text) for text in self.cuts), default=(-1, ""))
        if place < 0 or prompt[place + len(last) :].strip() not in self._source:
            return ""
        self._tails[prompt[place:]] = self.encode.one(prompt[place:])
        return prompt[place:]

    def _assemble(self, answers: list[Answer], ids: Iterator[list[int]]) -> Iterator[Sequence]:
        """Puts the encoded pieces of one conversation together."""
        sequence, kept, ended = Sequence(), True, True
        for answer in answers:
            prompt, said = next(ids), next(ids)
            if answer.joined is not None and kept:
                prompt = prompt[1:] if ended else prompt  # its end token is there already, unless the answer was cut
            else:
                if answer.joined is not None:  # the answer before merged with its prompt; all ids differ from there
                    prompt = self.encode.one(answer.prompt)
                if sequence.ids and prompt[: len(sequence.ids)] == sequence.ids:
                    prompt = prompt[len(sequence.ids) :]
                elif sequence.ids:
                    yield sequence
                    sequence = Sequence()
            sequence.extend(prompt, False)
            if answer.given is not None:
                self.counts["prompts_checked"] += 1
                self.counts["prompts_differ"] += answer.given != len(sequence.ids)
            kept, ended = self._say(sequence, answer, said), answer.end is not None
        if sequence.ids:
            yield sequence

    def _say(self, sequence: Sequence, answer: Answer, said: list[int]) -> bool:
        """Adds the completion; `said` are the ids of tail and text. Says whether they fall apart between the two."""
        tail = self._tails[answer.tail] if answer.tail else []
        kept = said[: len(tail)] == tail
        said = said[len(tail) :] if kept else self.encode.one(answer.text)
        as_sampled = answer.sampled is None or answer.sampled == said
        if not as_sampled:  # the next prompt has the text as the server encodes it anew
            self.counts["sampled_otherwise"] += 1
            said = answer.sampled
        if answer.learnt_from:
            lead = self.encode.one((answer.tail if kept else "") + answer.text[: answer.learnt_from])
            lead = lead[len(tail) :] if kept else lead
            alike = common_start(lead, said)
            sequence.extend(said[:alike], False)
            said = said[alike:]
        sequence.extend(said if answer.end is None else [*said, answer.end], True)
        sequence.turn_ends.append(len(sequence.ids))
        return kept and as_sampled


def pieces(answer: Answer) -> tuple[str, str]:
    """The two texts of an answer to encode: what is new of its prompt, and its words behind the prompt's tail."""
    return answer.prompt if answer.joined is None else answer.joined, answer.tail + answer.text


def _says_all(text: str, message: dict) -> bool:
    """Whether `text`, a template's, holds the words and the thought of `message` and, besides, names every call."""
    for words in (message.get("content"), message.get("reasoning_content")):
        spoken = (words or "").strip()
        if spoken not in text:
            return False
        text = text.replace(spoken, "", 1)
    names = Counter(function_names(message["tool_calls"]))
    return all(isinstance(name, str) and text.count(name) >= number for name, number in names.items())
