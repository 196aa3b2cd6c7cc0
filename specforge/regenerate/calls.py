"""Calls of tools that the target makes itself, and the recorded results that answer them."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, repeat, zip_longest
from typing import Any, NamedTuple

from specforge.files import digest

Turn = dict[str, Any]
Call = dict[str, Any]

ID_LENGTH = 9  # letters and digits, as Mistral's templates want them
DECODER = json.JSONDecoder()


class Unfit(NamedTuple):
    """Why the recorded turns do not go on from what the target said."""

    reason: str


def make_call(name: str, arguments: object) -> Call:
    """A call as a server gives it; arguments become an object, and what is none, or no plain JSON, stays as it is."""
    if isinstance(arguments, str | None):
        with suppress(ValueError, RecursionError):
            read = json.loads(arguments or "{}")
            json.dumps(read, allow_nan=False, ensure_ascii=False).encode()
            arguments = read
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def is_broken(call: Call) -> bool:
    return not isinstance(call["function"]["arguments"], dict)


def with_ids(calls: tuple[Call, ...], *place: object) -> list[Call]:
    """Ids that are a function of the conversation and the turn, `place`: those that servers give are random."""
    return [call | {"id": digest(*place, number)[:ID_LENGTH]} for number, call in enumerate(calls)]


def answered(said: Turn, recorded: Turn, following: list[Turn]) -> tuple[Turn, list[Turn]] | Unfit:
    """The turn `said` and the turns that follow the recorded one, results with the ids of the calls they answer.

    Results answer calls of the same functions in the same order, whatever the arguments: what a tool gave for one
    question stands for what it gives for another. Without a parser servers leave calls in the text, and so do some
    records.
    """
    calls, before = said.get("tool_calls", []), recorded.get("tool_calls", [])
    results = [turn for turn in following if turn["role"] == "tool"]
    if not results:
        return Unfit("unanswered_call") if calls else (said, following)
    names = _names(said)
    if not names:
        return Unfit("no_call")
    if names != _names(recorded) if _names(recorded) else len(names) != len(results):
        return Unfit("other_calls")
    if not calls:
        return said, following
    known = [call.get("id") for call in before] or [result.get("tool_call_id") for result in results]
    calls = [call | ({"id": number} if number else {}) for call, number in zip_longest(calls, known[: len(calls)])]
    ids = chain((call["id"] for call in calls), repeat(calls[-1]["id"]))
    following = [{"tool_call_id": number} | turn for turn, number in zip(results, ids, strict=False)]
    return said | {"tool_calls": calls}, following


def _names(turn: Turn) -> list[str | None]:
    """The functions that a turn calls, in order."""
    if calls := turn.get("tool_calls"):
        functions = [call.get("function", call) for call in calls]
        return [function.get("name") if isinstance(function, dict) else None for function in functions]
    return list(_names_in_text(turn["content"]))


def _names_in_text(text: str) -> Iterator[str]:
    """Of the JSON objects in a text that name a function and its arguments, as most models write their calls."""
    place = text.find("{")
    while place >= 0:
        found, end = None, place + 1
        with suppress(ValueError, RecursionError):
            found, end = DECODER.raw_decode(text, place)
        named = isinstance(found, dict) and isinstance(found.get("name"), str)
        if named and {"arguments", "parameters"} & found.keys():
            yield found["name"]
        place = text.find("{", end)
