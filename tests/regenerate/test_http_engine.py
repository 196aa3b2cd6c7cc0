import json
from collections import Counter

import pytest
from fake_server import echo, engine_for, rows_of, says, serving
from tiny import make_conversations

from specforge.regenerate.client import _with_argument_text
from specforge.regenerate.engine import Block


def calls(*said):
    functions = [{"name": name, "arguments": arguments} for name, arguments in said]
    message = {"role": "assistant", "content": None}
    message["tool_calls"] = [{"id": f"call_{n}", "type": "function", "function": f} for n, f in enumerate(functions)]
    usage = {"completion_tokens": 9, "prompt_tokens": 5}
    return 200, {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}


def test_each_turn_is_asked_on_the_regenerated_history():
    records = make_conversations(5)
    with serving(echo) as servers:
        rows = rows_of(servers, records, done={"c1"}, temperature=0.5, top_p=0.9)
    assert sorted(rows) == ["c0", "c2", "c3", "c4"]
    turns = rows["c2"]["conversations"]
    assert [turn["content"][:8] for turn in turns if turn["role"] == "assistant"] == [
        "answer 1",
        "answer 3",
        "answer 5",
    ]
    assert [turn for turn in turns if turn["role"] == "user"] == records[2]["conversations"][::2]
    assert rows["c2"]["tokens"] == 9
    assert rows["c0"]["conversations"][0] == {"role": "system", "content": "Be brief."}
    path, _, body = max(servers[0].seen, key=lambda request: len(request[2]["messages"]))
    assert path == "/v1/chat/completions"
    assert body["messages"][1] == {"role": "assistant", "content": turns[1]["content"]}
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("tiny", 0.5, 0.9, 9)


def test_seeds_are_of_the_turn_and_repeat():
    def seeds(**changes):
        with serving(echo) as servers:
            rows_of(servers, make_conversations(6), **changes)
        return {json.dumps(body["messages"]): body["seed"] for _, _, body in servers[0].seen}

    first = seeds()
    assert len(set(first.values())) == len(first) == 12
    assert first == seeds(concurrency=1)
    assert set(first.values()).isdisjoint(seeds(seed=1).values())


@pytest.mark.parametrize(
    "fault",
    [
        (500, {"error": "boom"}),
        (429, {"error": {"message": "slow down"}}),
        None,
        (200, b'{"choices": [{"mess'),
        says("half an ans", "abort"),
        says("", "error"),
    ],
)
def test_passing_faults_are_tried_again(fault):
    asked = Counter()

    def reply(body):
        asked[body["seed"]] += 1
        return fault if asked[body["seed"]] < 3 else echo(body)

    with serving(reply) as servers:
        rows = rows_of(servers, make_conversations(4))
    assert not any("error" in row for row in rows.values())
    assert set(asked.values()) == {3}


def test_a_refusal_fails_only_its_conversation_and_is_not_repeated():
    def reply(body):
        if "(2)" in body["messages"][-1]["content"]:
            return 400, {"error": {"message": "too many tokens"}}
        return echo(body)

    with serving(reply) as servers:
        rows = rows_of(servers, make_conversations(4))
    assert rows["c2"] == {"id": "c2", "error": "turn 2: HTTP 400: too many tokens", "lasting": True}
    assert sum("error" in row for row in rows.values()) == 1
    assert sum("(2)" in body["messages"][-1]["content"] for _, _, body in servers[0].seen) == 1


def test_a_refusal_after_an_answer_ends_the_conversation_there():
    def reply(body):
        return (400, {"error": "too many tokens"}) if len(body["messages"]) >= 3 else echo(body)

    with serving(reply) as servers:
        row = rows_of(servers, make_conversations(3))["c2"]  # three answers long
    assert [turn["role"] for turn in row["conversations"]] == ["user", "assistant"]
    assert (row["ended_early"], len(servers[0].seen)) == ("refused", 5)


def test_a_wrong_key_is_no_refusal_of_the_conversation():
    with serving(lambda body: (401, {"error": "no such key"})) as servers:
        assert rows_of(servers, make_conversations(2))["c1"] == {"id": "c1", "error": "turn 2: HTTP 401: no such key"}


def test_a_reply_without_a_marker_is_a_thought_where_the_prompt_opened_one_and_it_was_cut():
    def row(opened, reason):
        with serving(lambda body: says("Okay, the user wants", reason)) as servers:
            return rows_of(servers, make_conversations(2), opened=opened)["c1"]  # two answers long

    cut = row(True, "length")
    assert cut["ended_early"] == "unanswered"
    assert cut["conversations"][1:] == [
        {"role": "assistant", "content": "", "reasoning": "Okay, the user wants", "finish_reason": "length"}
    ]
    for opened, reason in ((True, "stop"), (False, "length"), (None, "length")):
        answers = row(opened, reason)["conversations"][1::2]
        assert [turn["content"] for turn in answers] == ["Okay, the user wants"] * 2
        assert not any("reasoning" in turn for turn in answers)


def test_a_lasting_fault_is_given_up():
    with serving(lambda body: (503, {"detail": "loading"})) as servers:
        rows = rows_of(servers, make_conversations(1))
    assert rows["c0"]["error"] == "turn 3: HTTP 503: loading"
    assert len(servers[0].seen) == 6


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (says("  \n"), "empty completion"),
        (says(None, "tool_calls"), "empty completion (finish reason tool_calls)"),
        (calls(("count", "no JSON")), "turn 3: the arguments of its call of count are no JSON object"),
        (calls(("count", "[1]")), "turn 3: the arguments of its call of count are no JSON object"),
        (calls((None, "{}")), "no chat completion"),
        (calls(("count", '{"a": NaN}')), "turn 3: the arguments of its call of count are no JSON object"),
        (calls(("count", '{"a": 1e999}')), "turn 3: the arguments of its call of count are no JSON object"),
        (calls(("count", '{"what": "\\ud83d"}')), "turn 3: the arguments of its call of count are no JSON object"),
        (calls(("count", '{"a": ' * 9000 + "1" + "}" * 9000)), "are no JSON object"),
        (says("half \ud83d"), "turn 3: the answer holds what is no text or number"),
        (says("fine", "\ud83d"), "turn 3: the answer holds what is no text or number"),
        (says("fine", {"type": "stop"}), "no chat completion (Expected `str | null`"),
        (says("fine", tokens="3"), "no chat completion (Expected `int | null`"),
        (says([{"text": "fine"}]), "no chat completion (Expected `str | null`"),
        (says(7), "no chat completion (Expected `str | null`"),
        ((200, b"[" * 90_000), "no chat completion"),
        ((200, {"choices": []}), "no chat completion"),
        ((200, ["x"]), "no chat completion"),
    ],
)
def test_useless_answers_are_error_rows(answer, cause):
    with serving(lambda body: answer) as servers:
        (row,) = rows_of(servers, make_conversations(1)).values()
    assert cause in row["error"]


def test_an_empty_later_answer_ends_the_conversation_after_the_one_before():
    with serving(lambda body: says("" if len(body["messages"]) > 2 else "fine")) as servers:
        row = rows_of(servers, make_conversations(3))["c2"]  # three answers long
    assert [turn["content"] for turn in row["conversations"][1:]] == ["fine"]
    assert row["ended_early"]


def test_the_key_is_sent_but_never_logged(caplog):
    caplog.set_level("DEBUG")
    with serving(echo) as servers:
        list(engine_for(servers, key="sk-secret").run([Block(make_conversations(1), ())]))
    headers = servers[0].seen[0][1]
    assert headers["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in caplog.text


def test_stopping_early_ends_what_is_under_way():
    with serving(echo) as servers:
        rows = engine_for(servers, concurrency=2).run([Block(make_conversations(50), ())])
        next(rows)
        rows.close()
        assert len(servers[0].seen) < 20


def test_reasoning_is_taken_from_the_field_that_the_server_has_for_it_or_out_of_the_text():
    def reply(body):
        number = len(body["messages"])
        message = {"content": "fine"} | ({"reasoning_content": "hm"} if number == 1 else {"reasoning": "hm, hm"})
        if number == 5:
            message = {"content": "<think>so</think>fine"}
        return 200, {"choices": [{"message": message, "finish_reason": "stop"}]}

    with serving(reply) as servers:
        row = rows_of(servers, make_conversations(3))["c2"]
    answers = row["conversations"][1::2]
    assert [(turn["content"], turn["reasoning"]) for turn in answers] == [
        ("fine", "hm"),
        ("fine", "hm, hm"),
        ("fine", "so"),
    ]
    sent = max((body for _, _, body in servers[0].seen), key=lambda body: len(body["messages"]))["messages"]
    assert sent[1] == {"role": "assistant", "content": "fine", "reasoning_content": "hm"}


def test_the_ids_that_a_server_sampled_are_kept_where_they_are_asked_for():
    def reply(body):
        status, content = echo(body)
        if body.get("return_token_ids"):
            content["choices"][0]["token_ids"] = [5, 6, 7]
        return status, content

    with serving(reply) as servers:
        asked, plain = (rows_of(servers, make_conversations(2), return_token_ids=ask)["c1"] for ask in (True, False))
    assert [turn.get("token_ids") for turn in asked["conversations"][1::2]] == [[5, 6, 7]] * 2
    assert not any("token_ids" in turn for turn in plain["conversations"])
    assert not any("token_ids" in message for _, _, body in servers[0].seen for message in body["messages"])


def test_words_that_only_some_servers_know_are_sent_when_they_are_set():
    def sent(template_kwargs=None, **changes):
        with serving(echo) as servers:
            engine = engine_for(servers, template_kwargs=template_kwargs, **changes)
            list(engine.run([Block(make_conversations(1), ())]))
        return servers[0].seen[0][2]

    assert not {"top_k", "chat_template_kwargs"} & sent().keys()
    body = sent({"enable_thinking": False}, top_k=20)
    assert (body["top_k"], body["chat_template_kwargs"]) == (20, {"enable_thinking": False})


def test_calls_of_a_served_model_are_its_answer_and_the_recorded_results_follow():
    def reply(body):
        return calls(("count", '{"what": "pears"}')) if len(body["messages"]) == 1 else says("Seven.")

    old = {"id": "c1", "type": "function", "function": {"name": "count", "arguments": {"what": "apples"}}}
    turns = [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "", "tool_calls": [old]},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
        {"role": "assistant", "content": "old"},
    ]
    record = {"id": "a", "conversations": turns, "tools": [{"type": "function", "function": {"name": "count"}}]}
    with serving(reply) as servers:
        row = rows_of(servers, [record])["a"]
    said = row["conversations"][1]
    function = {"name": "count", "arguments": {"what": "pears"}}
    assert said["tool_calls"] == [{"type": "function", "function": function, "id": "c1"}]
    assert (said["content"], said["finish_reason"], said["prompt_tokens"]) == ("", "tool_calls", 5)
    assert row["conversations"][2] == turns[2]
    assert row["conversations"][3]["content"] == "Seven."
    sent = servers[0].seen[1][2]["messages"][1]
    assert sent["tool_calls"][0]["function"]["arguments"] == '{"what": "pears"}'
    assert "prompt_tokens" not in sent


def test_arguments_of_recorded_calls_are_sent_as_text():
    call = {"id": "1", "type": "function", "function": {"name": "count", "arguments": {"what": "apples"}}}
    turns = [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    sent = _with_argument_text(turns[1])["tool_calls"][0]["function"]
    assert json.loads(sent["arguments"]) == {"what": "apples"}
    assert turns[1]["tool_calls"][0]["function"]["arguments"] == {"what": "apples"}
    assert _with_argument_text(turns[0]) == turns[0]
