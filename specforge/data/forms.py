"""The three forms of a raw row, recognised by the row itself, and their way into the native one.

ShareGPT: {"conversations": [{"from", "value"}]}; native: {"id", "conversations": [{"role", "content"}]};
OpenAI: {"messages": [{"role", "content"}]}. Here keys are renamed, and what some sources write otherwise (text in
parts, tools as JSON text, ShareGPT's function_call) is put the native way; `records` checks what the keys hold.
"""

from typing import Any, NamedTuple

from specforge.data.rejected import RejectedRow, kind
from specforge.data.tool_calls import calls_of, calls_said, tools_of

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool",
    "function_call": "assistant", "observation": "tool",
}  # fmt: skip
NATIVE_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
OPENAI_ROLES = {**NATIVE_ROLES, "developer": "system"}  # its newer name
EXTRA_TURN_KEYS = ("tool_calls", "tool_call_id", "name")
ANSWER_KEYS = ("reasoning_content", "reasoning", "finish_reason")  # of assistant turns; the first two say the same
EXTRA_ROW_KEYS = ("tools", "image")


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
    """The row under native keys, without what is null or empty; roles that the form does not know stay as they are.

    Raises RejectedRow where text that must be JSON is not, and where a part of a turn is no text.
    """
    turns = _system_key(raw, form) + raw[form.turns]
    row = {"conversations": [_native_turn(number, turn, form) for number, turn in enumerate(turns, 1)]}
    identity = raw.get("id")
    if identity is not None and identity != "":
        row["id"] = str(identity) if isinstance(identity, int) and not isinstance(identity, bool) else identity
    extra = {key: raw.get(key) for key in EXTRA_ROW_KEYS}
    extra["tools"] = tools_of(extra["tools"])
    return row | {key: value for key, value in extra.items() if value}


def _system_key(raw: dict, form: Form) -> list[dict[str, Any]]:
    """ShareGPT's `system` beside the turns, as a turn; nothing where it is blank or the turns begin with their own."""
    system, first = raw.get("system"), raw[form.turns][0]
    spoken = form is SHAREGPT and isinstance(system, str) and system.strip() and first.get(form.role) != "system"
    return [{form.role: "system", form.content: system}] if spoken else []


def _native_turn(number: int, turn: object, form: Form) -> object:
    if not isinstance(turn, dict):
        return turn
    role, content = turn.get(form.role), _joined(turn.get(form.content), number)
    extra = {key: turn[key] for key in EXTRA_TURN_KEYS if turn.get(key)}
    if "tool_calls" in extra:
        extra["tool_calls"] = calls_of(extra["tool_calls"], number)
    if form is SHAREGPT and role == "function_call":
        content, extra["tool_calls"] = "", calls_said(content, number)
    role = form.roles.get(role, role) if isinstance(role, str) else role
    if role == "assistant":
        extra |= _answer_keys(turn)
    if content is None and ("tool_calls" in extra or "reasoning" in extra):
        content = ""
    return {"role": role, "content": content, **extra}


def _answer_keys(turn: dict[str, Any]) -> dict[str, str]:
    """What the model thought, and why it stopped; servers give the thought either name."""
    told = {key: turn[key] for key in ANSWER_KEYS if isinstance(turn.get(key), str) and turn[key].strip()}
    reasoning = told.pop("reasoning_content", None) or told.get("reasoning")
    return told | ({"reasoning": reasoning} if reasoning else {})


def _joined(content: object, number: int) -> object:
    """The text of OpenAI's content parts; all else as it is. Raises RejectedRow for a part that is no text."""
    if not (isinstance(content, list) and content and all(isinstance(part, dict) for part in content)):
        return content
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            found = f"{part.get('type')!r:.40}"
            raise RejectedRow("not_text", f"turn {number} has a part of type {found}; only text parts can be used.")
    return "".join(part["text"] for part in content)


def has_unused_keys(raw: dict, form: Form) -> bool:
    """Whether the row or a turn says more than the record keeps. All turns must be objects."""
    used_in_row, used_in_turn = {"id", form.turns, *EXTRA_ROW_KEYS}, {form.role, form.content, *EXTRA_TURN_KEYS}
    if _system_key(raw, form):
        used_in_row.add("system")
    owners = [(raw, used_in_row)]
    for turn in raw[form.turns]:
        answers = form.roles[turn[form.role]] == "assistant"
        owners.append((turn, used_in_turn | set(ANSWER_KEYS) if answers else used_in_turn))
    return any(owner[key] is not None for owner, used in owners for key in owner.keys() - used)
