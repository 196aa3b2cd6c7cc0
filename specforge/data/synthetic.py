"""Made conversations: cheap to learn, with real choice in wording, equal for equal seeds.

Facts and numbers come from small tables, so that a model of a million weights becomes fluent in a minute,
while the wording keeps its entropy: a draft can neither know it all nor know nothing.
"""

import itertools
from collections.abc import Iterator
from random import Random

from specforge.data.tables import SYSTEMS
from specforge.data.topics_facts import FACT_KINDS
from specforge.data.topics_tasks import TASK_KINDS
from specforge.data.wording import CLOSINGS, GREETINGS, OPENINGS, THANKS, closed, say

KINDS = FACT_KINDS + TASK_KINDS
SYSTEM_SHARE = 0.15
TURN_WEIGHTS = (0.6, 0.28, 0.12)  # of conversations with one, two and three questions


def generate(count: int | None, seed: int) -> Iterator[dict]:
    """Native records, `count` of them or without end; record n depends on the seed and n only."""
    for index in itertools.count() if count is None else range(count):
        rng = Random(f"{seed}:{index}")
        yield {"id": f"synthetic-{seed}-{index}", "conversations": _conversation(rng)}


def _conversation(rng: Random) -> list[dict]:
    ask, answer, more = rng.choice(KINDS)(rng)
    first = say(rng, GREETINGS) + ask + say(rng, THANKS), say(rng, OPENINGS) + closed(rng, answer, CLOSINGS)
    later = rng.choices(range(3), TURN_WEIGHTS)[0]
    turns = [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < SYSTEM_SHARE else []
    for question, reply in (first, *more[:later]):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return turns
