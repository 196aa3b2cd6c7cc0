"""Tools and their calls as chat templates read them: what a source gives as JSON text becomes the value it says."""

import json
from typing import Any

from specforge.data.rejected import RejectedRow, kind

REASON = "tools_type"


def tools_of(value: object) -> object:
    """The tools of a row, a list or its JSON text, in OpenAI's form, which servers insist on. Raises RejectedRow."""
    tools = _parsed(value, "'tools'") if isinstance(value, str) else value
    return [_wrapped(tool) for tool in tools] if isinstance(tools, list) else tools


def _wrapped(tool: object) -> object:
    """LLaMA-Factory's rows have the bare function."""
    bare = isinstance(tool, dict) and "function" not in tool and isinstance(tool.get("name"), str)
    return {"type": "function", "function": tool} if bare else tool


def calls_of(calls: object, turn: int) -> object:
    """Calls whose arguments are objects; what is no list of objects stays as it is. Raises RejectedRow."""
    if not isinstance(calls, list):
        return calls
    return [_call(call, turn) if isinstance(call, dict) else call for call in calls]


def function_names(calls: list[Any]) -> list[object]:
    """The names of the functions called, in order; None where a call has none."""
    functions = [call.get("function", call) if isinstance(call, dict) else None for call in calls]
    return [function.get("name") if isinstance(function, dict) else None for function in functions]


def calls_said(text: object, turn: int) -> list[dict[str, Any]]:
    """The calls that ShareGPT's role function_call writes: one object with name and arguments, or a list of them."""
    what = f"the function_call of turn {turn}"
    said = _parsed(text, what) if isinstance(text, str) else text
    functions = said if isinstance(said, list) else [said]
    for function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RejectedRow(REASON, f"{what} is not JSON of an object with 'name' and 'arguments'.")
    return [{"type": "function", "function": _with_arguments(function, turn)} for function in functions]


def _call(call: dict[str, Any], turn: int) -> dict[str, Any]:
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_arguments(call["function"], turn)}
    return _with_arguments(call, turn) if "name" in call else call


def _with_arguments(function: dict[str, Any], turn: int) -> dict[str, Any]:
    what, arguments = f"'arguments' in turn {turn}", function.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, what)
    if not isinstance(arguments, dict | None):
        raise RejectedRow(REASON, f"{what} is {kind(arguments)}; it must be an object or its JSON text.")
    return function | {"arguments": arguments or {}}


def _parsed(text: str, what: str) -> Any:
    """What JSON text says; None where it is blank."""
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        raise RejectedRow(REASON, f"{what} is text, but no JSON: {text!r:.60}.") from None
