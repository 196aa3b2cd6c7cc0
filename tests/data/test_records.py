import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specforge.data.records import DROPPED_KEYS, IMAGE_UNSEEN, IMAGE_UNSHOWN, UNANSWERED, Limits, conversation_key
from specforge.data.records import parse_row as parse
from specforge.data.rejected import RejectedRow

ASK, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
NATIVE = {"id": "a", "conversations": [ASK, ANSWER]}


def parse_row(raw, max_turns=64, max_chars=10_000, **images):
    """The plain row, and the notes."""
    record, notes = parse(raw, Limits(max_turns, max_chars, **images))
    return record.plain(), notes


def rejection(raw, *limits, **images):
    with pytest.raises(RejectedRow) as caught:
        parse_row(raw, *limits, **images)
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
    assert parse_row(raw) == (NATIVE, {})


def test_tools_and_calls_are_kept():
    function = {"name": "f", "arguments": {"a": 1}}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}
    result = {"role": "tool", "content": "3", "tool_call_id": "1"}
    record, notes = parse_row({"id": 7, "tools": [{"name": "f"}], "messages": [ASK, call, result, ANSWER]})
    assert record == {
        "id": "7",
        "tools": [{"type": "function", "function": {"name": "f"}}],
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
        ("tools_type", {"messages": [ASK, {**ANSWER, "tool_calls": "f"}]}),
        ("turn_type", {"messages": [ASK, {**ANSWER, "tool_call_id": 3}]}),
        ("turn_type", {"messages": [ASK, {**ANSWER, "name": ["f"]}]}),
        ("unknown_role", {"messages": [{"role": None, "content": "Hi"}]}),
        ("unknown_role", {"messages": [{"role": ["user"], "content": "Hi"}]}),
        ("bad_image", {"messages": [ASK, ANSWER], "image": {"bytes": "x"}}),
    ],
)
def test_each_bad_row_names_its_reason(reason, raw):
    assert rejection(raw) == reason


def test_turns_are_counted_after_the_cut():
    turns = [ASK, ANSWER] * 2
    assert rejection({"messages": turns}, max_turns=3) == "too_many_turns"
    assert parse_row({"messages": turns}, 4)[0]["conversations"] == turns
    record, notes = parse_row({"messages": [*turns, ASK]}, 4)
    assert record["conversations"] == turns
    assert notes == {UNANSWERED: 1}


def test_keys_that_are_not_kept_are_noted():
    raw = {**NATIVE, "lang": "en", "score": None}
    assert parse_row(raw) == (NATIVE, {DROPPED_KEYS: 1})
    assert parse_row({**NATIVE, "score": None}) == (NATIVE, {})
    assert parse_row({**NATIVE, "conversations": [ASK, {**ANSWER, "weight": 0}]})[1] == {DROPPED_KEYS: 1}


def test_a_missing_id_comes_from_the_content():
    raws = ({}, {"id": ""}, {"tools": [{"name": "f"}]}, {"image": "a.png"})
    first, same, tools, image = (parse({"messages": [ASK, ANSWER], **extra}, Limits(64, 99)).record for extra in raws)
    other = parse({"messages": [ASK, {**ANSWER, "content": "Bye."}]}, Limits(64, 99)).record
    assert first.id == same.id == conversation_key(first)
    assert len({first.id, tools.id, image.id, other.id}) == 4
    first.id = "b"
    assert conversation_key(first) == same.id


def test_the_size_is_limited_over_all_texts():
    row = {"id": "abcd", "messages": [ASK, ANSWER], "tools": [{"function": "f"}]}
    length = len("abcdfunction" + "f" + "user" + "Hi?" + "assistant" + "Hello.")
    assert parse_row(row, 64, length)
    assert rejection(row, 64, length - 1) == "too_long"
    assert rejection({"messages": [ASK, {**ANSWER, "content": "x" * 10_001}]}) == "too_long"


def test_a_developer_is_the_system_in_the_openai_form_only():
    turns = [{"role": "developer", "content": "Be kind."}, ASK, ANSWER]
    assert parse_row({"messages": turns})[0]["conversations"][0]["role"] == "system"
    assert rejection({"conversations": turns}) == "unknown_role"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), (1, {2}), b"x", datetime(2020, 1, 1)])
def test_what_json_cannot_say_is_no_tool(value):
    assert rejection({"messages": [ASK, ANSWER], "tools": [{"a": value}]}) == "tools_type"


def test_null_and_empty_extras_are_left_out():
    turn = {**ANSWER, "tool_calls": None, "tool_call_id": "", "name": None}
    assert parse_row({**NATIVE, "conversations": [ASK, turn], "tools": [], "image": None}) == (NATIVE, {})


def test_an_image_is_looked_for_where_a_folder_is_given(tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "1.jpg").touch()
    row = NATIVE | {"image": "coco/1.jpg"}
    assert parse_row(row) == (row, {IMAGE_UNSEEN: 1, IMAGE_UNSHOWN: 1})
    assert parse_row(row, image_folder=str(tmp_path)) == (row, {IMAGE_UNSHOWN: 1})
    assert rejection({**row, "image": "coco/2.jpg"}, image_folder=str(tmp_path)) == "image_missing"
    assert rejection(NATIVE, needs_image=True) == "image_missing"
    assert parse_row(NATIVE, image_folder=str(tmp_path)) == (NATIVE, {})


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


def outcome(raw):
    try:
        return parse_row(raw, 8)
    except RejectedRow as rejection:
        return rejection


@given(json_values)
def test_any_json_is_a_record_or_a_rejection(raw):
    found = outcome(raw)
    if isinstance(found, RejectedRow):
        assert found.reason.isidentifier()
        assert found.detail.endswith(".")
    else:
        row, _ = found
        json.dumps(row, ensure_ascii=False).encode()
        assert row["conversations"][-1]["role"] == "assistant"
        assert outcome(row) == (row, {IMAGE_UNSEEN: 1, IMAGE_UNSHOWN: 1} if "image" in row else {})


CALL = {"name": "f", "arguments": {"a": None}}
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
tool_rounds = st.lists(texts, max_size=2).map(
    lambda results: [
        turn
        for result in results
        for turn in (
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": CALL}]},
            {"role": "tool", "content": result, "tool_call_id": "1"},
        )
    ]
)
rounds = st.tuples(texts, tool_rounds, texts).map(
    lambda r: [{"role": "user", "content": r[0]}, *r[1], {"role": "assistant", "content": r[2]}]
)
systems = st.lists(texts.map(lambda text: {"role": "system", "content": text}), max_size=1)
conversations = st.tuples(systems, st.lists(rounds, min_size=1, max_size=3)).map(
    lambda parts: [*parts[0], *(turn for one in parts[1] for turn in one)]
)


@given(conversations, texts, st.sampled_from(["native", "openai"]))
def test_every_good_conversation_is_kept_as_it_is(turns, identity, form):
    key = "messages" if form == "openai" else "conversations"
    assert parse_row({"id": identity, key: turns}) == ({"id": identity, "conversations": turns}, {})


@given(conversations, st.data())
def test_a_good_conversation_with_one_turn_gone_wrong_is_rejected(turns, data):
    turns = [dict(turn) for turn in turns]
    place = data.draw(st.integers(0, len(turns) - 1))
    spoilt = data.draw(
        st.sampled_from([
            {"content": " "}, {"content": 3}, {"role": "alien"}, {"role": "system"}, {"content": "a\0"},
            {"content": "\udc00"}, {"tool_calls": [3]},
        ]).filter(lambda change: change != {"role": turns[place]["role"]})
    )  # fmt: skip
    turns[place] = turns[place] | spoilt
    if spoilt == {"content": " "}:
        turns[place].pop("tool_calls", None)
    assert rejection({"messages": turns})
