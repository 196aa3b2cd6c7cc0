"""One raw row of a data set, in any of three forms, as one native record, or the reason why not.

ShareGPT: {"conversations": [{"from", "value"}]}; native: {"id", "conversations": [{"role", "content"}]};
OpenAI: {"messages": [{"role", "content"}]}. The form is recognised by the row itself, never by a file name.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
NATIVE_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
FOLLOWERS = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
EXTRA_TURN_KEYS = ("tool_calls", "tool_call_id", "name")

UNANSWERED = "unanswered_last_turns_cut"
DROPPED_KEYS = "rows_with_unused_keys"


class RejectedRow(Exception):
    """A row that cannot be used: `reason` is a short code to count by, `detail` one sentence."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Form(NamedTuple):
    """Where a form keeps its turns, and in which keys of a turn."""

    turns: str
    role: str
    content: str
    roles: dict[str, str]


SHAREGPT = Form("conversations", "from", "value", SHAREGPT_ROLES)
NATIVE = Form("conversations", "role", "content", NATIVE_ROLES)
OPENAI = Form("messages", "role", "content", NATIVE_ROLES)


class Parsed(NamedTuple):
    """A usable record, and what was left out of it, by name and count."""

    record: dict[str, Any]
    notes: dict[str, int]


def parse_row(raw: object, max_turns: int) -> Parsed:
    """The native record of a raw row. Raises RejectedRow."""
    if not isinstance(raw, dict):
        raise RejectedRow("not_an_object", f"the row is {_kind(raw)}; it must be an object with conversations.")
    form = _form(raw)
    turns = [_turn(turn, number, form) for number, turn in enumerate(raw[form.turns], 1)]
    _check_order(turns)
    notes = {UNANSWERED: _cut_unanswered(turns), DROPPED_KEYS: int(_has_unused_keys(raw, form))}
    if len(turns) > max_turns:
        raise RejectedRow("too_many_turns", f"it has {len(turns)} turns, more than max_turns, {max_turns}.")
    record = {"id": _identity(raw, turns), "conversations": turns}
    if raw.get("tools"):
        record["tools"] = _objects(raw["tools"], "tools")
    _check_characters(record)
    return Parsed(record, {name: count for name, count in notes.items() if count})


def conversation_key(record: dict) -> str:
    """Equal for records that say the same, whatever their ids."""
    said = [record["conversations"], record.get("tools")]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]


def _form(raw: dict) -> Form:
    present = [key for key in ("conversations", "messages") if raw.get(key) is not None]
    if len(present) != 1:
        found = "both" if present else f"neither, but {', '.join(map(repr, list(raw)[:5])) or 'no key at all'}"
        detail = f"a row has either 'conversations' or 'messages'; this one has {found}."
        raise RejectedRow("no_known_form", detail)
    turns = raw[present[0]]
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else _kind(turns)
        raise RejectedRow("no_turns", f"{present[0]!r} is {found}; it must be a list of turns.")
    if present == ["messages"]:
        return OPENAI
    return SHAREGPT if isinstance(turns[0], dict) and "from" in turns[0] else NATIVE


def _turn(turn: object, number: int, form: Form) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise RejectedRow("turn_type", f"turn {number} is {_kind(turn)}; it must be an object.")
    name, content = turn.get(form.role), turn.get(form.content)
    if not isinstance(name, str) or name not in form.roles:
        known = ", ".join(form.roles)
        raise RejectedRow("unknown_role", f"turn {number} has {form.role!r} {name!r:.40}; known are {known}.")
    extra = {key: turn[key] for key in EXTRA_TURN_KEYS if turn.get(key)}
    if "tool_calls" in extra:
        _objects(extra["tool_calls"], f"'tool_calls' of turn {number}")
        content = "" if content is None else content
    if not isinstance(content, str):
        detail = f"turn {number} has {_kind(content)} as {form.content!r}; it must be text."
        raise RejectedRow("turn_type", detail)
    if not content.strip() and "tool_calls" not in extra:
        raise RejectedRow("empty_turn", f"turn {number} ({name}) is empty.")
    return {"role": form.roles[name], "content": content, **extra}


def _check_order(turns: list[dict]) -> None:
    before = None
    for number, turn in enumerate(turns, 1):
        if turn["role"] not in FOLLOWERS[before]:
            place = f"after {before}" if before else "at the start"
            due = " or ".join(FOLLOWERS[before])
            detail = f"turn {number} is {turn['role']} {place}, where {due} is due."
            raise RejectedRow("roles_out_of_order", detail)
        before = turn["role"]


def _cut_unanswered(turns: list[dict]) -> int:
    """Removes user and tool turns after the last answer: nothing is learnt from them. Returns how many."""
    answered = max((n for n, turn in enumerate(turns, 1) if turn["role"] == "assistant"), default=0)
    if not answered:
        raise RejectedRow("no_answer", "it has no assistant turn.")
    cut = len(turns) - answered
    del turns[answered:]
    return cut


def _has_unused_keys(raw: dict, form: Form) -> bool:
    """Whether the row or a turn says more than the record keeps."""
    used = {form.role, form.content, *EXTRA_TURN_KEYS}
    rest = [raw.keys() - {"id", "tools", form.turns}, *(turn.keys() - used for turn in raw[form.turns])]
    owners = [raw, *raw[form.turns]]
    return any(owner[key] is not None for owner, keys in zip(owners, rest, strict=True) for key in keys)


def _identity(raw: dict, turns: list[dict]) -> str:
    identity = raw.get("id")
    if identity is None or identity == "":
        return conversation_key({"conversations": turns, "tools": raw.get("tools")})
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise RejectedRow("bad_id", f"'id' is {_kind(identity)}; it must be text or a whole number.")
    return str(identity)


def _objects(value: object, name: str) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RejectedRow("tools_type", f"{name} is {_kind(value)}; it must be a list of objects.")
    return value


def _check_characters(record: dict) -> None:
    """Tokenizers and UTF-8 files take no lone surrogates; NUL is the mark of a damaged file."""
    for text in _texts(record):
        bad = next((char for char in text if char == "\0" or "\ud800" <= char <= "\udfff"), None)
        if bad is not None:
            found = "a NUL" if bad == "\0" else f"the lone surrogate U+{ord(bad):04X}"
            raise RejectedRow("bad_characters", f"it holds {found}, which is no valid text.")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
