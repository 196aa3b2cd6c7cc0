"""The three forms of a raw row, recognised by the row itself, and their way into the native one.

ShareGPT: {"conversations": [{"from", "value"}]}; native: {"id", "conversations": [{"role", "content"}]};
OpenAI: {"messages": [{"role", "content"}]}. Here only keys are renamed; `records` checks what they hold.
"""

from typing import Any, NamedTuple

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
NATIVE_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
OPENAI_ROLES = {**NATIVE_ROLES, "developer": "system"}  # its newer name
EXTRA_TURN_KEYS = ("tool_calls", "tool_call_id", "name")
EXTRA_ROW_KEYS = ("tools", "image")


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
OPENAI = Form("messages", "role", "content", OPENAI_ROLES)


def recognise(raw: object) -> Form:
    """The form of a row with at least one turn. Raises RejectedRow."""
    if not isinstance(raw, dict):
        raise RejectedRow("not_an_object", f"the row is {kind(raw)}; it must be an object with conversations.")
    present = [key for key in ("conversations", "messages") if raw.get(key) is not None]
    if len(present) != 1:
        found = "both" if present else f"neither, but {', '.join(map(repr, list(raw)[:5])) or 'no key at all'}"
        detail = f"a row has either 'conversations' or 'messages'; this one has {found:.200}."
        raise RejectedRow("no_known_form", detail)
    turns = raw[present[0]]
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else kind(turns)
        raise RejectedRow("no_turns", f"{present[0]!r} is {found}; it must be a list of turns.")
    if present == ["messages"]:
        return OPENAI
    return SHAREGPT if isinstance(turns[0], dict) and "from" in turns[0] else NATIVE


def native(raw: dict, form: Form) -> dict[str, Any]:
    """The row under native keys, without what is null or empty; roles that the form does not know stay as they are."""
    row = {"conversations": [_native_turn(turn, form) for turn in raw[form.turns]]}
    identity = raw.get("id")
    if identity is not None and identity != "":
        row["id"] = str(identity) if isinstance(identity, int) and not isinstance(identity, bool) else identity
    return row | {key: raw[key] for key in EXTRA_ROW_KEYS if raw.get(key)}


def _native_turn(turn: object, form: Form) -> object:
    if not isinstance(turn, dict):
        return turn
    role, content = turn.get(form.role), turn.get(form.content)
    extra = {key: turn[key] for key in EXTRA_TURN_KEYS if turn.get(key)}
    if content is None and "tool_calls" in extra:
        content = ""
    return {"role": form.roles.get(role, role) if isinstance(role, str) else role, "content": content, **extra}


def has_unused_keys(raw: dict, form: Form) -> bool:
    """Whether the row or a turn says more than the record keeps. All turns must be objects."""
    used_in_row, used_in_turn = {"id", form.turns, *EXTRA_ROW_KEYS}, {form.role, form.content, *EXTRA_TURN_KEYS}
    owners = [(raw, used_in_row), *((turn, used_in_turn) for turn in raw[form.turns])]
    return any(owner[key] is not None for owner, used in owners for key in owner.keys() - used)


def kind(value: object) -> str:
    """What a value is, in words of JSON."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
