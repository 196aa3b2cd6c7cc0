"""Calls of tools that the target makes itself, and the recorded results that answer them."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from specforge.data.tool_calls import function_names
from specforge.files import digest

Turn = dict[str, Any]
Call = dict[str, Any]

ID_LENGTH = 9  # letters and digits, as Mistral's templates want them
DECODER = json.JSONDecoder()


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


def with_ids(calls: Iterable[Call], *place: object) -> list[Call]:
    """Ids that are a function of the conversation and the turn, `place`: those that servers give are random."""
    return [call | {"id": digest(*place, number)[:ID_LENGTH]} for number, call in enumerate(calls)]


def answered(said: Turn, recorded: Turn, following: list[Turn]) -> tuple[Turn, list[Turn]] | str:
    """The turn `said` and the turns that follow the recorded one, results with the ids of the calls they answer.

    Or the reason why these do not go on from what the target said. Results answer calls of the same functions in the
    same order, whatever the arguments: what a tool gave for one question stands for what it gives for another. Without
    a parser servers leave calls in the text, and so do some records.
    """
    calls, before = said.get("tool_calls", []), recorded.get("tool_calls", [])
    results = [turn for turn in following if turn["role"] == "tool"]
    if not results:
        return "unanswered_call" if calls else (said, following)
    names, wanted = _names(said), _names(recorded)
    if not names:
        return "no_call"
    if names != wanted if wanted else len(names) != len(results):
        return "other_calls"
    if not calls:
        return said, following
    known = [call.get("id") for call in before] or [result.get("tool_call_id") for result in results]
    ids = [number or call["id"] for call, number in zip_longest(calls, known[: len(calls)])]
    calls = [call | {"id": number} for call, number in zip(calls, ids, strict=True)]
    pairs = zip_longest(results, ids[: len(results)], fillvalue=ids[-1])
    return said | {"tool_calls": calls}, [{"tool_call_id": number} | turn for turn, number in pairs]


def _names(turn: Turn) -> list[object]:
    """The functions that a turn calls, in order."""
    calls = turn.get("tool_calls")
    return function_names(calls) if calls else list(_names_in_text(turn["content"]))


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
