"""What some sources write otherwise than the three forms do: it becomes the native form, or rejects the row."""

import json

import pytest

from specforge.data.records import DROPPED_KEYS, Limits
from specforge.data.records import parse_row as parse
from specforge.data.rejected import RejectedRow

ASK, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
NATIVE = {"id": "a", "conversations": [ASK, ANSWER]}


def parse_row(raw):
    """The plain row, and the notes."""
    record, notes = parse(raw, Limits(64, 10_000))
    return record.plain(), notes


def rejection(raw):
    with pytest.raises(RejectedRow) as caught:
        parse_row(raw)
    assert caught.value.detail.endswith(".")
    return caught.value.reason


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ('{"what": "apples"}', {"what": "apples"}), ({"what": None}, {"what": None}), ("", {}), (" ", {}), (None, {}),
        ("null", {}), ("{}", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [True, False])
def test_arguments_as_json_text_become_the_object_they_say(given, kept, nested):
    def row(arguments):
        function = {"name": "f", "arguments": arguments}
        call = {"function": function} if nested else function
        return {"id": "a", "messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]}

    assert parse_row(row(given))[0]["conversations"] == row(kept)["messages"]


@pytest.mark.parametrize("arguments", ['{"what": ', "apples", "[1]", "3", [1], True, '{"n": NaN}'])
def test_arguments_that_are_no_object_reject_the_row(arguments):
    calls = [{"function": {"name": "f", "arguments": arguments}}]
    assert rejection({"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": calls}]}) == "tools_type"


def test_missing_arguments_are_none_given():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    (_, turn) = parse_row({"messages": [ASK, call]})[0]["conversations"]
    assert turn["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]


def test_tools_as_json_text_are_the_list_they_say():
    told = [{"type": "function", "function": {"name": "f"}}]
    for text in ('[{"name": "f"}]', '[{"type": "function", "function": {"name": "f"}}]'):
        assert parse_row({**NATIVE, "tools": text}) == ({**NATIVE, "tools": told}, {})
    for none in ("", " ", "[]", "null"):
        assert parse_row({**NATIVE, "tools": none})[0] == NATIVE
    for bad in ("[{", '{"name": "f"}', '"[]"'):
        assert rejection({**NATIVE, "tools": bad}) == "tools_type"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_and_why_an_answer_stopped_are_kept(name):
    turn = {**ANSWER, name: "Greet back.", "finish_reason": "stop"}
    kept = {**ANSWER, "reasoning": "Greet back.", "finish_reason": "stop"}
    assert parse_row({"id": "a", "messages": [ASK, turn]}) == ({"id": "a", "conversations": [ASK, kept]}, {})
    odd = {**ANSWER, name: " ", "finish_reason": None}
    assert parse_row({"id": "a", "messages": [{**ASK, name: "So."}, odd]}) == (NATIVE, {DROPPED_KEYS: 1})


def test_a_thought_that_was_cut_needs_no_answer():
    cut = {"role": "assistant", "content": "", "reasoning": "Well", "finish_reason": "length"}
    row = {"id": "a", "conversations": [ASK, cut]}
    assert parse_row(row) == (row, {})
    assert parse_row({"id": "a", "messages": [ASK, {**cut, "content": None}]}) == (row, {})
    assert rejection({"messages": [ASK, {**cut, "finish_reason": "stop"}]}) == "empty_turn"
    assert rejection({"messages": [ASK, {**cut, "reasoning": ""}]}) == "empty_turn"


def test_text_in_parts_is_joined_and_another_part_rejects_the_row():
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?", "image_url": None}]
    assert parse_row({"id": "a", "messages": [{"role": "user", "content": parts}, ANSWER]}) == (NATIVE, {})
    picture = {"type": "image_url", "image_url": {"url": "a.png"}}
    for part in (picture, {}, {"type": "text", "text": None}):
        assert rejection({"messages": [{"role": "user", "content": [*parts, part]}, ANSWER]}) == "not_text"


def test_sharegpt_calls_functions_and_observes_what_they_say():
    said = [("human", "How many?"), ("function_call", None), ("observation", "7"), ("gpt", "Seven.")]
    calls = [{"name": "count", "arguments": {"what": "apples"}}]
    for text in (
        json.dumps(calls[0]),
        json.dumps(calls),
        json.dumps([{**calls[0], "arguments": '{"what": "apples"}'}]),
    ):
        turns = [{"from": role, "value": text if value is None else value} for role, value in said]
        assert parse_row({"id": "a", "conversations": turns})[0]["conversations"] == [
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": calls[0]}]},
            {"role": "tool", "content": "7"},
            {"role": "assistant", "content": "Seven."},
        ]
    for bad in ("count()", "{}", "3", '{"name": 3}', None):
        turns = [{"from": "human", "value": "How many?"}, {"from": "function_call", "value": bad}]
        assert rejection({"conversations": turns}) == "tools_type"


def test_sharegpts_system_key_is_the_first_turn_unless_the_turns_have_one():
    turns = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
    spoken = {"id": "a", "conversations": [{"role": "system", "content": "Be kind."}, ASK, ANSWER]}
    assert parse_row({"id": "a", "system": "Be kind.", "conversations": turns}) == (spoken, {})
    own = [{"from": "system", "value": "Be kind."}, *turns]
    assert parse_row({"id": "a", "system": "Be brief.", "conversations": own}) == (spoken, {DROPPED_KEYS: 1})
    for blank in (None, "", " "):
        assert parse_row({"id": "a", "system": blank, "conversations": turns})[0] == NATIVE
