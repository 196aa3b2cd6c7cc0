"""What a conversation becomes of the target's answers."""

import pytest

from specforge.regenerate.engine import Completion, Dialogue
from specforge.regenerate.reasoning import split_reasoning

RECORD = {
    "id": "a",
    "conversations": [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "old"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "old"},
    ],
}


def said(*completions: Completion, keep_truncated: bool = True) -> dict:
    dialogue = Dialogue(RECORD, keep_truncated)
    for completion in completions:
        assert dialogue.due
        dialogue.answer(completion)
    assert not dialogue.due
    return dialogue.row()


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("plain <b>text</b>\n", False, ("", "plain <b>text</b>\n")),
        ("<think>\nwhy\n</think>\n\nbecause", False, ("why", "because")),
        ("Write `</think>` to end it.\n", False, ("", "Write `</think>` to end it.\n")),
        ("why</think>because", None, ("why", "because")),
        ("why, and", None, ("", "why, and")),
        ("why</think>because", True, ("why", "because")),
        ("<think>\n\n</think>\n\nbecause", False, ("", "because")),
        ("<think>why, and", False, ("why, and", "")),
        ("why, and", True, ("why, and", "")),
        ("a </think> b </think> c", None, ("a", "b </think> c")),
        ("<think>a</think> b </think> c", False, ("a", "b </think> c")),
    ],
)
def test_reasoning_is_taken_out_of_text(text: str, opened: bool | None, expected: tuple[str, str]):
    assert split_reasoning(text, opened) == expected


def test_reasoning_is_recorded_beside_the_answer_and_sent_for_the_template_to_decide():
    dialogue = Dialogue(RECORD)
    dialogue.answer(Completion("yes", "stop", 5, "hm"))
    assert dialogue.turns[1] == {"role": "assistant", "content": "yes", "reasoning": "hm", "finish_reason": "stop"}
    assert dialogue.messages()[1] == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    dialogue.answer(Completion("no", "stop", 2))
    assert "reasoning" not in dialogue.turns[3]
    assert dialogue.row()["tokens"] == 7


def test_a_turn_cut_by_length_is_kept_marked_and_followed():
    row = said(Completion("cut", "length", 2), Completion("no", "stop", 2))
    assert [turn.get("finish_reason") for turn in row["conversations"]] == [None, "length", None, "stop"]
    assert "ended_early" not in row


def test_a_turn_cut_by_length_may_be_left_out():
    row = said(Completion("yes", "stop", 2), Completion("cut", "length", 2), keep_truncated=False)
    assert [turn["content"] for turn in row["conversations"]] == ["one?", "yes"]
    assert (row["ended_early"], row["tokens"]) == ("length", 2)
    assert said(Completion("cut", "length", 2), keep_truncated=False) == {"id": "a", "excluded": "length"}


def test_a_turn_cut_while_it_thought_is_the_last():
    row = said(Completion("", "length", 9, "hm, hm"))
    assert row["conversations"][1] == {
        "role": "assistant", "content": "", "reasoning": "hm, hm", "finish_reason": "length"
    }  # fmt: skip
    assert row["ended_early"] == "unanswered"
    assert said(Completion("", "length", 9, "hm, hm"), keep_truncated=False)["excluded"] == "length"


def test_thoughts_without_an_answer_are_an_empty_answer():
    assert said(Completion(" ", "stop", 9, "hm"))["error"] == "turn 2: empty completion (finish reason stop)"


def test_what_is_refused_after_an_answer_ends_there_and_before_one_fails_for_good():
    dialogue = Dialogue(RECORD)
    dialogue.answer(Completion("yes", "stop", 5))
    dialogue.refuse("too long")
    row = dialogue.row()
    assert [turn["content"] for turn in row["conversations"]] == ["one?", "yes"]
    assert (row["ended_early"], dialogue.due) == ("refused", False)
    dialogue = Dialogue(RECORD)
    dialogue.refuse("too long")
    assert dialogue.row() == {"id": "a", "error": "turn 2: too long", "lasting": True}
