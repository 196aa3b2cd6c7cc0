"""Templates with choices: the entropy of the synthetic conversations.

A template picks among alternatives in brackets, [so|such], also nested, and then takes its {words}.
"""

import re
from random import Random
from typing import NamedTuple

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SENTENCE_START = re.compile(r"(?:^|(?<=[.?!] ))[a-z]")

OPENINGS = "[|Of course. |Good question. |Happy to help. ]"
CLOSINGS = "[| I hope this helps.| Let me know if you want more.]"
GREETINGS = "[|||||Hello. |Hi there. |I have a question. |Please help me. |Hello again. ]"
THANKS = "[|||||| Thank you.| Please keep it short.| Please explain.| Thanks a lot.]"
LATER_CLOSINGS = "[| Does that answer your question?| I hope that makes it clear.]"
CONNECTIVES = "[|||And |Thanks. |I see. |Nice. |Great. |One more question: ]"


class Topic(NamedTuple):
    """A question with its answer, and what may be asked next about the same."""

    ask: str
    answer: str
    more: list[tuple[str, str]]


def _choose(rng: Random, wordings: list[str]) -> str:
    """The first most often, each further one a quarter as often: speakers have habits, and a target has modes.

    Where nothing at all stands several times among them, they are weighted by hand.
    """
    if wordings.count("") > 1:
        return rng.choice(wordings)
    return rng.choices(wordings, [0.25**place for place in range(len(wordings))])[0]


def say(rng: Random, template: str, **words: object) -> str:
    """One wording of the template. Words are put in last, so they may hold brackets."""
    while "[" in template:
        template = CHOICE.sub(lambda found: _choose(rng, found[1].split("|")), template)
    text = SENTENCE_START.sub(lambda found: found[0].upper(), template).format(**words)
    return text[:1].upper() + text[1:]


def closed(rng: Random, answer: str, closings: str) -> str:
    """The answer with a closing sentence, which stands apart after a list, code or a letter."""
    closing = say(rng, closings)
    return answer + (closing.replace(" ", "\n\n", 1) if "\n" in answer else closing)


def follow(rng: Random, ask: str, answer: str, **words: object) -> tuple[str, str]:
    """A later question, which makes sense only after the first, and its answer."""
    return say(rng, CONNECTIVES + ask, **words), closed(rng, say(rng, answer, **words), LATER_CLOSINGS)


def shuffled(rng: Random, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return rng.sample(pairs, len(pairs))
