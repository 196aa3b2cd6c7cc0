"""What follows a turn in which the target calls tools, or does not."""

import re

import pytest

from specforge.regenerate.calls import is_broken, make_call
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
WORDS = '<tool_call>\n{"name": "count", "arguments": {"of": {"what": "apples"}}}\n</tool_call>'
WRITTEN = record(OLD | {"content": WORDS}, result("7"), OLD)


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
        (WRITTEN, (call("count"),), [None]),
    ],
)
def test_recorded_results_answer_calls_of_the_same_functions(source, said, ids):
    row = after(source, "", *said)
    calls = row["conversations"][1]["tool_calls"]
    assert [one["function"] for one in calls] == [one["function"] for one in said]
    made = [one["id"] for one in calls]
    assert [known or new for known, new in zip(ids, made, strict=True)] == made
    assert all(re.fullmatch("[a-z0-9]{9}", new) for known, new in zip(ids, made, strict=True) if not known)
    results = [turn for turn in row["conversations"] if turn["role"] == "tool"]
    assert [turn["tool_call_id"] for turn in results] == made
    assert [turn["content"] for turn in results] == [
        t["content"] for t in source["conversations"] if t["role"] == "tool"
    ]
    assert row["due"]
    assert after(source, "", *said) == row


@pytest.mark.parametrize(
    ("source", "text", "said", "reason"),
    [
        (TWO, "", (call("weigh"), call("count")), "other_calls"),
        (TWO, "", (call("count"),), "other_calls"),
        (UNTOLD, "", (call("count"), call("count")), "other_calls"),
        (ONE, "Seven.", (), "no_call"),
        (UNTOLD, "Seven.", (), "no_call"),
        (TWO, "I would count.", (), "no_call"),
        (ONE, "Sorry, I cannot count apples, see {this}.", (), "no_call"),
        (ONE, WORDS.replace("count", "weigh"), (), "other_calls"),
        (WRITTEN, WORDS + WORDS, (), "other_calls"),
        (PLAIN, "", (call("count"),), "unanswered_call"),
    ],
)
def test_a_turn_that_the_recorded_ones_do_not_follow_is_the_last(source, text, said, reason):
    row = after(source, text, *said)
    assert (row["ended_early"], row["due"], len(row["conversations"])) == (reason, False, 2)
    made = [{k: v for k, v in one.items() if k != "id"} for one in row["conversations"][1].get("tool_calls", [])]
    assert [one["function"] for one in made] == [one["function"] for one in said]


@pytest.mark.parametrize("source", [ONE, WRITTEN])
@pytest.mark.parametrize(
    "words", [WORDS, '{"name": "count", "parameters": {}}', '[TOOL_CALLS][{"name": "count", "arguments": {}}]']
)
def test_a_call_that_stands_in_the_text_is_one(source, words):
    row = after(source, words)
    assert row["due"]
    assert row["conversations"][1]["content"] == words
    assert row["conversations"][2] == result("7")


def test_a_call_that_the_length_limit_cut_leaves_what_was_said_before():
    def said(text, reasoning="", keep=True):
        dialogue = Dialogue(PLAIN, keep)
        cut = make_call("count", '{"a": "xx')
        dialogue.answer(Completion(text, "length", 9, reasoning, (cut,)))
        return dialogue.row()

    assert said("Let me count.")["conversations"][1] == {
        "role": "assistant", "content": "Let me count.", "finish_reason": "length"
    }  # fmt: skip
    assert said("", "Hm.")["conversations"][1]["reasoning"] == "Hm."
    assert said("") == said("Let me count.", keep=False) == {"id": "a", "excluded": "length"}


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
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {}),
        ("x", "x"),
        ("[]", []),
        ('{"a": NaN}', '{"a": NaN}'),
    ],
)
def test_arguments_of_servers_are_read(arguments, expected):
    said = make_call("count", arguments)
    assert said == {"type": "function", "function": {"name": "count", "arguments": expected}}
    assert is_broken(said) == (not isinstance(expected, dict))
