"""Calls of tools that the target makes itself, and the recorded results that answer them."""

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

Turn = dict[str, Any]
Call = dict[str, Any]


class Unfit(NamedTuple):
    """Why the recorded turns do not go on from what the target said."""

    reason: str


def calls_in(message: dict[str, Any]) -> list[Call]:
    """The calls of a server's reply, arguments as objects; where they are no JSON object they stay as they are.

    The ids that servers give are left out: most are random. Raises LookupError, TypeError or AttributeError for what
    is no list of calls.
    """
    return [{"type": "function", "function": _function(call["function"])} for call in message.get("tool_calls") or []]


def _function(said: dict[str, Any]) -> dict[str, Any]:
    name, arguments = said["name"], said.get("arguments")
    if not isinstance(name, str):
        raise TypeError("a call without a name")
    if isinstance(arguments, str | None):
        with suppress(ValueError):  # what is no JSON stays text, and `broken` finds it
            arguments = json.loads(arguments or "{}")
    return {"name": name, "arguments": arguments}


def broken(calls: Iterable[Call]) -> str | None:
    """The name of a function that is called with arguments that are no object."""
    return next((call["function"]["name"] for call in calls if not _is_whole(call)), None)


def _is_whole(call: Call) -> bool:
    return isinstance(call["function"]["arguments"], dict)


def matched(said: Turn, recorded: Turn, following: list[Turn]) -> list[Call] | Unfit:
    """The calls of the turn `said`, with the ids of the recorded calls that the turns `following` answer.

    Results answer calls of the same functions in the same order, whatever the arguments: what a tool gave for one
    question stands for what it gives for another. A call that a server left in the text is found by its name.
    """
    calls, before = said.get("tool_calls", []), recorded.get("tool_calls", [])
    results = [turn for turn in following if turn["role"] == "tool"]
    if not results:
        return Unfit("unanswered_call") if calls else []
    if not calls:
        names = [name for name in map(_name, before) if name]
        return [] if names and all(name in said["content"] for name in names) else Unfit("no_call")
    if before:
        fits = [_name(call) for call in calls] == [_name(call) for call in before]
    else:
        fits = len(calls) == len(results)
    ids = [call.get("id") for call in before] or [result.get("tool_call_id") for result in results]
    if not fits:
        return Unfit("other_calls")
    return [call | ({"id": number} if number else {}) for call, number in zip(calls, ids, strict=True)]


def _name(call: Call) -> str | None:
    """Recorded calls are objects of any make; most have their name below `function`."""
    function = call.get("function", call)
    return function.get("name") if isinstance(function, dict) else None
