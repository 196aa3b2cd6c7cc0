"""What the target itself generates for a recorded answer: the words that its template puts around it, its end token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import Any, NamedTuple

from specforge.data.template import Refused

Render = Callable[[list[dict], list | None, bool], str]
THOUGHT, ANSWER = "specforge0thought", "specforge0answer"  # stand-ins that no template changes
REASONING_KEYS = ("reasoning_content", "thinking")  # of a message, as templates read them; the second is gpt-oss's
THINK, THOUGHT_OVER = "<think>", "</think>"
ENDED = (None, "stop", "tool_calls")  # finish reasons of an answer that came to its end


@dataclass(frozen=True)
class Frame:
    """What stands before the reasoning, between it and the answer, and directly after the answer."""

    opening: str
    middle: str
    after: str

    @property
    def marks(self) -> tuple[str, str]:
        """What shows that a text holds its reasoning itself: the words around the reasoning, without blanks."""
        return self.opening.strip(), self.middle.strip()


# Where a template has no words of its own: what such models write, and what servers' parsers take apart.
CONVENTION = (f"{THINK}\n", f"\n{THOUGHT_OVER}\n\n")


class Words(NamedTuple):
    """A completion's text, from which of its characters on it is learnt, and whether it came to its end."""

    text: str
    learnt_from: int
    ended: bool


def read_frame(render: Render, messages: list[dict], tools: list | None, tail: str, reasoned: bool) -> Frame:
    """How the template writes an answer to `messages`, seen from one with stand-ins for its words.

    `tail` is the end of the prompt from its last special token on.
    """
    turn = {"role": "assistant", "content": ANSWER}
    if reasoned:
        turn |= dict.fromkeys(REASONING_KEYS, THOUGHT)
    prompt, whole = render(messages, tools, True), render([*messages, turn], tools, False)
    before, found, after = whole.rpartition(ANSWER)
    if not found:  # a template that ignores what it is told; the tokenizer's own end token must do
        before = after = ""
    if before.startswith(prompt):
        said = before[len(prompt) :]
    else:
        said = before.rpartition(tail)[2] if tail and tail in before else ""
    if not reasoned:
        return Frame("", said, after)
    if THOUGHT in said:
        opening, _, middle = said.rpartition(THOUGHT)
        return Frame(opening, middle, after)
    if prompt.rstrip("\n").endswith(THINK):  # the prompt opens it and history drops it, as DeepSeek-R1's does
        blank = "\n" if prompt.endswith("\n") else ""
        return Frame("", f"{blank}{THOUGHT_OVER}{blank * 2}", after)
    return Frame(*CONVENTION, after)


def came_to_end(turn: dict[str, Any]) -> bool:
    """Whether the target itself ended `turn`; a length limit, a filter or a server that gave up did not let it."""
    return turn.get("finish_reason") in ENDED


def completion(turn: dict[str, Any], plain: Frame, thinking: Frame, learn_reasoning: bool) -> Words:
    """The text that the target generated for `turn`.

    Reasoning that a server kept apart goes back where the template has it. An answer that holds its reasoning itself
    is taken as it is. Any other gets what the template writes before it, such as a channel's name or an empty
    thought. Raises Refused when it has no text at all.
    """
    content, reasoning = turn["content"], turn.get("reasoning")
    if not isinstance(content, str):
        raise Refused("an answer has no text")
    cut = not came_to_end(turn)
    if reasoning is not None:
        thought = thinking.opening + reasoning.strip("\n")
        if cut and not content:
            return Words(thought, 0 if learn_reasoning else len(thought), False)
        lead = thought + thinking.middle
        return Words(lead + content.lstrip("\n"), 0 if learn_reasoning else len(lead), not cut)
    held = _held_reasoning(content, thinking)
    if held is not None:
        return Words(content, 0 if learn_reasoning else held, not cut)
    opened = not thinking.opening
    if opened and cut:  # the prompt began a thought, and this is its beginning
        return Words(content, 0 if learn_reasoning else len(content), False)
    lead = plain.middle or (thinking.middle if opened else "")
    if content.startswith(lead):
        lead = ""
    learnt_from = len(lead) if _is_reasoning(lead, thinking) and not learn_reasoning else 0
    return Words(lead + content, learnt_from, not cut)


def learnt_of_call(text: str, turn: dict[str, Any], plain: Frame, thinking: Frame, learn_reasoning: bool) -> int:
    """From which character on a turn of tool calls is learnt; `text` is the template's of it.

    Behind a thought comes a call, not the words that the frame has before an answer: only what the two share is passed.
    """
    if learn_reasoning:
        return 0
    thought = (turn.get("reasoning") or "").strip()
    if thought and thought in text:
        over = text.index(thought) + len(thought)
        return over + common_start(text[over:], thinking.middle)
    held = _held_reasoning(text, thinking)
    if held is not None and held < len(text):
        return held
    return len(plain.middle) if _is_reasoning(plain.middle, thinking) and text.startswith(plain.middle) else 0


def common_start(one: Sequence, other: Sequence) -> int:
    """How many items or characters two sequences have in common from their beginning on."""
    return sum(takewhile(bool, map(eq, one, other)))


def take_apart(text: str, plain: Frame, thinking: Frame) -> tuple[str, str]:
    """(reasoning, answer) of what a model wrote in its template's words; a text without them is all answer."""
    opening, closing = thinking.marks
    said, lead = text.lstrip(), plain.middle.strip()
    if closing and said.startswith(opening):
        reasoning, _, answer = said.removeprefix(opening).partition(closing)
        return reasoning.strip(), answer.strip()
    return "", said.removeprefix(lead).strip() if lead and said.startswith(lead) else text


def _held_reasoning(content: str, thinking: Frame) -> int | None:
    """Where the answer begins in a text that holds its reasoning, its end when that was cut; None without reasoning.

    A text that neither begins with a thought nor follows a prompt that does may quote the marks.
    """
    opening, closing = thinking.marks
    if not content.lstrip().startswith(opening):  # "" where the prompt began the thought
        return None
    _, found, after = content.partition(closing) if closing else (content, "", "")
    if found:
        return len(content) - len(after.lstrip("\n"))
    return len(content) if opening else None


def _is_reasoning(lead: str, thinking: Frame) -> bool:
    """Whether what the template writes before an answer is an empty thought."""
    return bool(lead) and lead.split() == (thinking.opening + thinking.middle).split()
