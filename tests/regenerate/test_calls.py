"""What follows a turn in which the target calls tools, or does not."""

import pytest

from specforge.regenerate.calls import broken, calls_in
from specforge.regenerate.engine import Completion, Dialogue


def call(name, arguments=None, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments or {}}} | more


def result(content, number=None):
    return {"role": "tool", "content": content} | ({"tool_call_id": number} if number else {})


ASK = {"role": "user", "content": "How many?"}
OLD = {"role": "assistant", "content": "old"}


def record(*turns):
    return {"id": "a", "conversations": [ASK, *turns]}


TWO = record(
    OLD | {"tool_calls": [call("count", id="x"), call("weigh", id="y")]}, result("7", "x"), result("3", "y"), OLD
)
ONE = record(OLD | {"tool_calls": [call("count")]}, result("7"), OLD)
UNTOLD = record(OLD, result("7", "x"), OLD)  # the source has results only
PLAIN = record(OLD, ASK, OLD)


def after(source, text="", *calls):
    """The row, said so far, once the target has answered the first turn."""
    dialogue = Dialogue(source)
    dialogue.answer(Completion(text, "tool_calls" if calls else "stop", 5, calls=calls))
    return dialogue.row() | {"due": dialogue.due}


@pytest.mark.parametrize(
    ("source", "said", "ids"),
    [
        (TWO, (call("count", {"what": "pears"}), call("weigh")), ["x", "y"]),
        (ONE, (call("count"),), [None]),
        (UNTOLD, (call("whatever"),), ["x"]),
    ],
)
def test_recorded_results_answer_calls_of_the_same_functions(source, said, ids):
    row = after(source, "", *said)
    calls = row["conversations"][1]["tool_calls"]
    assert [one.get("id") for one in calls] == ids
    assert [one["function"] for one in calls] == [one["function"] for one in said]
    assert [turn for turn in row["conversations"] if turn["role"] == "tool"] == source["conversations"][2:-1]
    assert row["due"]


@pytest.mark.parametrize(
    ("source", "text", "said", "reason"),
    [
        (TWO, "", (call("weigh"), call("count")), "other_calls"),
        (TWO, "", (call("count"),), "other_calls"),
        (UNTOLD, "", (call("count"), call("count")), "other_calls"),
        (ONE, "Seven.", (), "no_call"),
        (UNTOLD, "Seven.", (), "no_call"),
        (TWO, "I would count.", (), "no_call"),
        (PLAIN, "", (call("count"),), "unanswered_call"),
    ],
)
def test_a_turn_that_the_recorded_ones_do_not_follow_is_the_last(source, text, said, reason):
    row = after(source, text, *said)
    assert (row["ended_early"], row["due"], len(row["conversations"])) == (reason, False, 2)
    assert row["conversations"][1].get("tool_calls", []) == list(said)


def test_a_call_that_a_server_leaves_in_the_text_is_one():
    row = after(ONE, '<tool_call>\n{"name": "count", "arguments": {}}\n</tool_call>')
    assert row["due"]
    assert row["conversations"][2] == result("7")


def test_a_call_may_be_the_last_turn():
    row = after(record(OLD), "", call("count"))
    assert (row["due"], "ended_early" in row) == (False, False)


def test_a_broken_call_ends_the_conversation_after_the_answer_before():
    dialogue = Dialogue(PLAIN)
    dialogue.answer(Completion("Seven.", "stop", 3))
    dialogue.answer(
        Completion("", "tool_calls", 3, calls=(call("count") | {"function": {"name": "count", "arguments": "x"}},))
    )
    row = dialogue.row()
    assert (row["ended_early"], [turn["content"] for turn in row["conversations"]]) == (
        "broken_call",
        ["How many?", "Seven."],
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("", {}), (None, {}), ("x", "x"), ("[]", [])],
)
def test_arguments_of_servers_are_read(arguments, expected):
    (said,) = calls_in({"tool_calls": [{"id": "r", "function": {"name": "count", "arguments": arguments}}]})
    assert said == {"type": "function", "function": {"name": "count", "arguments": expected}}
    assert broken([said]) == (None if isinstance(expected, dict) else "count")
