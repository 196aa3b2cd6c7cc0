import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specforge.data.records import DROPPED_KEYS, UNANSWERED, RejectedRow, conversation_key, parse_row

ASK, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
NATIVE = {"id": "a", "conversations": [ASK, ANSWER]}


def rejection(raw, max_turns=64):
    with pytest.raises(RejectedRow) as caught:
        parse_row(raw, max_turns)
    assert caught.value.detail.endswith(".")
    return caught.value.reason


@pytest.mark.parametrize(
    "raw",
    [
        NATIVE,
        {"id": "a", "messages": [ASK, ANSWER]},
        {"id": "a", "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
        {"id": "a", "conversations": [{"from": "user", "value": "Hi?"}, {"from": "bard", "value": "Hello."}]},
    ],
)
def test_the_three_forms_give_one_record(raw):
    assert parse_row(raw, 64) == (NATIVE, {})


def test_tools_and_calls_are_kept():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
    result = {"role": "tool", "content": "3", "tool_call_id": "1"}
    record, notes = parse_row({"id": 7, "tools": [{"name": "f"}], "messages": [ASK, call, result, ANSWER]}, 64)
    assert record == {
        "id": "7",
        "tools": [{"name": "f"}],
        "conversations": [ASK, {**call, "content": ""}, result, ANSWER],
    }
    assert not notes


@pytest.mark.parametrize(
    ("reason", "raw"),
    [
        ("not_an_object", ["conversations"]),
        ("not_an_object", None),
        ("no_known_form", {"text": "Hi"}),
        ("no_known_form", {"conversations": [ASK, ANSWER], "messages": [ASK, ANSWER]}),
        ("no_turns", {"conversations": []}),
        ("no_turns", {"messages": "Hi"}),
        ("turn_type", {"conversations": [ASK, "Hello."]}),
        ("turn_type", {"conversations": [ASK, {"role": "assistant", "content": ["Hello."]}]}),
        ("turn_type", {"conversations": [ASK, {"role": "assistant"}]}),
        ("unknown_role", {"conversations": [ASK, {"role": "gpt", "content": "Hello."}]}),
        ("unknown_role", {"conversations": [{"from": "alien", "value": "Hi"}]}),
        ("unknown_role", {"conversations": [ASK, {"from": "gpt", "value": "Hello."}]}),
        ("roles_out_of_order", {"messages": [ANSWER, ASK, ANSWER]}),
        ("roles_out_of_order", {"messages": [ASK, ASK, ANSWER]}),
        ("roles_out_of_order", {"messages": [ASK, ANSWER, {"role": "system", "content": "Be kind."}]}),
        ("roles_out_of_order", {"messages": [ASK, {"role": "tool", "content": "3"}, ANSWER]}),
        ("roles_out_of_order", {"messages": [ASK, ANSWER, {"role": "tool", "content": "3"}, ASK, ANSWER]}),
        ("no_answer", {"messages": [ASK]}),
        ("empty_turn", {"messages": [ASK, {"role": "assistant", "content": " \n"}]}),
        ("bad_characters", {"messages": [ASK, {"role": "assistant", "content": "a\0b"}]}),
        ("bad_characters", {"messages": [ASK, {"role": "assistant", "content": "a\ud800"}]}),
        ("bad_characters", {"messages": [ASK, ANSWER], "tools": [{"na\udfffme": 1}]}),
        ("bad_id", {"id": True, "messages": [ASK, ANSWER]}),
        ("bad_id", {"id": ["a"], "messages": [ASK, ANSWER]}),
        ("tools_type", {"tools": "f", "messages": [ASK, ANSWER]}),
        ("tools_type", {"messages": [ASK, {**ANSWER, "tool_calls": ["f"]}]}),
    ],
)
def test_each_bad_row_names_its_reason(reason, raw):
    assert rejection(raw) == reason


def test_turns_are_counted_after_the_cut():
    turns = [ASK, ANSWER] * 2
    assert rejection({"messages": turns}, max_turns=3) == "too_many_turns"
    assert parse_row({"messages": turns}, 4).record["conversations"] == turns
    record, notes = parse_row({"messages": [*turns, ASK]}, 4)
    assert record["conversations"] == turns
    assert notes == {UNANSWERED: 1}


def test_keys_that_are_not_kept_are_noted():
    raw = {**NATIVE, "lang": "en", "score": None}
    assert parse_row(raw, 64) == (NATIVE, {DROPPED_KEYS: 1})
    assert parse_row({**NATIVE, "score": None}, 64) == (NATIVE, {})
    assert parse_row({**NATIVE, "conversations": [ASK, {**ANSWER, "weight": 0}]}, 64).notes == {DROPPED_KEYS: 1}


def test_a_missing_id_comes_from_the_content():
    first, same = (parse_row({"messages": [ASK, ANSWER], **extra}, 64).record for extra in ({}, {"id": ""}))
    other = parse_row({"messages": [ASK, {**ANSWER, "content": "Bye."}]}, 64).record
    assert first["id"] == same["id"] != other["id"]
    assert conversation_key(first) == conversation_key({**first, "id": "b"}) != conversation_key(other)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "conversations", "messages", "role", "content", "from", "value", "tools"])
            | st.text(),
            inner | st.sampled_from(["user", "assistant", "human", "gpt"]),
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_a_record_or_a_rejection(raw):
    try:
        record = parse_row(raw, 8).record
    except RejectedRow:
        return
    json.dumps(record, ensure_ascii=False).encode()
    assert record["conversations"][-1]["role"] == "assistant"
