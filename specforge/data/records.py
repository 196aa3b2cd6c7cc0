"""One raw row of a data set as one typed record, or the reason why not."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec

from specforge.data.forms import Form, has_unused_keys, native, recognise
from specforge.data.rejected import RejectedRow, kind

FOLLOWERS = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
IMAGE_UNSEEN = "images_not_looked_for"
IMAGE_UNSHOWN = "answers_about_images_trained_on_as_text"
UNANSWERED = "unanswered_last_turns_cut"
DROPPED_KEYS = "rows_with_unused_keys"
NO_TEXT = re.compile("[\0\ud800-\udfff]")
PLACE = re.compile(r"\$\.(?:conversations\[(?P<turn>\d+)\])?\.?(?P<key>\w*)")


class Turn(msgspec.Struct, omit_defaults=True):
    """What one side says. A tool call may stand in place of words, and so may a thought that was cut."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: list[dict[str, Any]] = []
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""
    finish_reason: str = ""

    def says_nothing(self) -> bool:
        cut_thought = self.finish_reason == "length" and self.reasoning
        return not (self.content.strip() or self.tool_calls or cut_thought)


class Record(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A conversation: an optional system turn, then user and assistant in turn, with tool results between."""

    id: str = ""
    conversations: list[Turn]
    tools: list[dict[str, Any]] = []
    image: str = ""

    def plain(self) -> dict[str, Any]:
        """The native row, without what is empty."""
        return msgspec.to_builtins(self)


class Limits(NamedTuple):
    """How large a record may be, and whether it must name an image (below `image_folder`, where one is given)."""

    max_turns: int
    max_chars: int
    needs_image: bool = False
    image_folder: str | None = None


class Parsed(NamedTuple):
    """A usable record, and what was left out of it, by name and count."""

    record: Record
    notes: dict[str, int]


def parse_row(raw: object, limits: Limits) -> Parsed:
    """The record of a raw row in any of the three forms. Raises RejectedRow."""
    form = recognise(raw)
    record = _typed(raw, form)
    _check_turns(record.conversations)
    notes = {UNANSWERED: _cut_unanswered(record.conversations), DROPPED_KEYS: int(has_unused_keys(raw, form))}
    count = len(record.conversations)
    if count > limits.max_turns:
        raise RejectedRow("too_many_turns", f"it has {count} turns, more than prepare.max_turns, {limits.max_turns}.")
    _check_values(record, limits.max_chars)
    notes |= {IMAGE_UNSEEN: int(_check_image(record, limits)), IMAGE_UNSHOWN: int(bool(record.image))}
    record.id = record.id or conversation_key(record)
    return Parsed(record, {name: count for name, count in notes.items() if count})


def conversation_key(record: Record) -> str:
    """Equal for records that say the same, whatever their ids."""
    said = [msgspec.to_builtins(record.conversations), record.tools or None]
    said += [record.image] if record.image else []
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]


def _typed(raw: dict, form: Form) -> Record:
    row = native(raw, form)
    try:
        return msgspec.convert(row, Record)
    except msgspec.ValidationError as error:
        _refuse_type(str(error), row, form)


def _refuse_type(message: str, row: dict, form: Form) -> NoReturn:
    """msgspec says where a wrong type is; why it is wrong is said in words of the row's own form."""
    turn, key = PLACE.search(message).group("turn", "key")
    if turn is None:
        if key == "id":
            raise RejectedRow("bad_id", f"'id' is {kind(row['id'])}; it must be text or a whole number.")
        if key == "image":
            raise RejectedRow("bad_image", f"'image' is {kind(row['image'])}; it must be the image's path or address.")
        raise RejectedRow("tools_type", f"'tools' is {kind(row['tools'])}; it must be a list of objects.")
    number, value = int(turn) + 1, row["conversations"][int(turn)]
    if not isinstance(value, dict):
        raise RejectedRow("turn_type", f"turn {number} is {kind(value)}; it must be an object.")
    if key == "role":
        known = ", ".join(form.roles)
        raise RejectedRow("unknown_role", f"turn {number} has {form.role!r} {value['role']!r:.40}; known are {known}.")
    if key == "tool_calls":
        found = kind(value["tool_calls"])
        raise RejectedRow("tools_type", f"'tool_calls' of turn {number} is {found}; it must be a list of objects.")
    name = form.content if key == "content" else key
    raise RejectedRow("turn_type", f"turn {number} has {kind(value[key])} as {name!r}; it must be text.")


def _check_turns(turns: list[Turn]) -> None:
    before = None
    for number, turn in enumerate(turns, 1):
        if turn.role not in FOLLOWERS[before]:
            place = f"after {before}" if before else "at the start"
            due = " or ".join(FOLLOWERS[before])
            raise RejectedRow("roles_out_of_order", f"turn {number} is {turn.role} {place}, where {due} is due.")
        if turn.says_nothing():
            raise RejectedRow("empty_turn", f"turn {number} ({turn.role}) is empty.")
        before = turn.role


def _cut_unanswered(turns: list[Turn]) -> int:
    """Removes user and tool turns after the last answer: nothing is learnt from them. Returns how many."""
    answered = max((n for n, turn in enumerate(turns, 1) if turn.role == "assistant"), default=0)
    if not answered:
        raise RejectedRow("no_answer", "it has no assistant turn.")
    cut = len(turns) - answered
    del turns[answered:]
    return cut


def _check_values(record: Record, max_chars: int) -> None:
    """Tokenizers and UTF-8 files take no lone surrogates; NUL is the mark of a damaged file."""
    length = 0
    for text in _texts([record.id, record.image, record.tools, *map(msgspec.structs.astuple, record.conversations)]):
        length += len(text)
        if length > max_chars:
            raise RejectedRow("too_long", f"it has more than prepare.max_chars, {max_chars}, characters.")
        bad = NO_TEXT.search(text)
        if bad is not None:
            found = "a NUL" if bad[0] == "\0" else f"the lone surrogate U+{ord(bad[0]):04X}"
            raise RejectedRow("bad_characters", f"it holds {found}, which is no valid text.")


def _texts(value: object) -> Iterator[str]:
    """All texts in a value, keys too. Raises RejectedRow where a tool holds what JSON cannot say."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif not (value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))):
        raise RejectedRow("tools_type", f"its tools hold {kind(value)} ({value!r:.40}), which JSON cannot say.")


def _check_image(record: Record, limits: Limits) -> bool:
    """Raises RejectedRow where an image is missing; says whether one is named that nobody can look for."""
    if not record.image:
        if limits.needs_image:
            raise RejectedRow("image_missing", "it names no image, and each row of this data set is about one.")
        return False
    if limits.image_folder is None:
        return True
    if not (Path(limits.image_folder) / record.image).is_file():
        detail = f"its image {record.image!r:.200} is not in prepare.image_folder, {limits.image_folder}."
        raise RejectedRow("image_missing", detail)
    return False
