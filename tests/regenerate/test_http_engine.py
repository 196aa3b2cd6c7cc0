import json
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny import make_conversations

from specforge.config.steps import Regenerate
from specforge.errors import UserError
from specforge.regenerate import pool
from specforge.regenerate.engine import Block
from specforge.regenerate.http import HttpEngine
from specforge.regenerate.pool import MOVES, STRIKES


class Fake(ThreadingHTTPServer):
    """Answers with what `reply` returns for a request: (status, JSON), or None to hang up."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.seen, self.lock = reply, [], threading.Lock()
        self.now = self.peak = 0

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Healthy."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), body))
            self.server.now += 1
            self.server.peak = max(self.server.peak, self.server.now)
        answer = self.server.reply(body)
        with self.server.lock:
            self.server.now -= 1
        if answer is None:
            self.close_connection = True
            return
        status, content = answer
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *words):
        """Silence."""


def says(text, reason="stop", tokens=3):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return 200, {"choices": [choice], "usage": {"completion_tokens": tokens}}


def echo(body):
    return says(f"answer {len(body['messages'])} to {body['messages'][-1]['content']}")


@contextmanager
def serving(*replies):
    servers = [Fake(reply) for reply in replies]
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield servers
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def engine_for(servers, key=None, patience=60.0, template_kwargs=None, **changes):
    options = {
        "engine": "endpoint",
        "endpoints": [server.url for server in servers],
        "max_tokens": 9,
    } | changes
    settings = Regenerate(**options)
    return HttpEngine(
        settings.endpoints, "tiny", settings, template_kwargs, api_key=key, backoff=0.01, patience=patience
    )


def rows_of(servers, records, done=(), **changes):
    return {row["id"]: row for row in engine_for(servers, **changes).run([Block(records, done)])}


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


@pytest.mark.parametrize("fault", [(500, {"error": "boom"}), (429, {"error": {"message": "slow down"}}), None])
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
    assert rows["c2"] == {"id": "c2", "error": "turn 2: HTTP 400: too many tokens"}
    assert sum("error" in row for row in rows.values()) == 1
    assert sum("(2)" in body["messages"][-1]["content"] for _, _, body in servers[0].seen) == 1


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


def test_a_conversation_stays_on_its_server_and_load_is_level():
    barrier = threading.Barrier(4, timeout=5)

    def meet(body):
        if len(body["messages"]) <= 2:
            barrier.wait()  # two conversations on each server at once, or this breaks
        return echo(body)

    with serving(meet, meet) as servers:
        rows_of(servers, make_conversations(4), concurrency=2)
    homes = defaultdict(set)
    for server in servers:
        assert server.peak == 2
        for _, _, body in server.seen:
            homes[next(m["content"] for m in body["messages"] if m["role"] == "user")].add(server.url)
    assert len(homes) == 4
    assert all(len(urls) == 1 for urls in homes.values())


def test_conversations_of_a_dying_server_move_on():
    alive = Counter()

    def dying(body):
        alive["answers"] += 1
        return echo(body) if alive["answers"] <= 3 else None

    records = make_conversations(12)
    with serving(dying, echo) as servers:
        rows = rows_of(servers, records, concurrency=2)
    assert sorted(rows) == sorted(record["id"] for record in records)
    assert not any("error" in row for row in rows.values())


def test_without_any_server_the_run_ends_in_one_sentence_and_keeps_what_it_has():
    asked = Counter()

    def dying(body):
        asked["all"] += 1
        return echo(body) if asked["all"] <= 2 else None

    with serving(dying) as servers:
        rows = engine_for(servers, concurrency=1).run([Block(make_conversations(3), ())])
        assert next(rows)["id"] == "c0"
        with pytest.raises(UserError, match=r"no server answers any more.*run again"):
            next(rows)


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


def test_words_that_only_some_servers_know_are_sent_when_they_are_set():
    def sent(template_kwargs=None, **changes):
        with serving(echo) as servers:
            engine = engine_for(servers, template_kwargs=template_kwargs, **changes)
            list(engine.run([Block(make_conversations(1), ())]))
        return servers[0].seen[0][2]

    assert not {"top_k", "chat_template_kwargs"} & sent().keys()
    body = sent({"enable_thinking": False}, top_k=20)
    assert (body["top_k"], body["chat_template_kwargs"]) == (20, {"enable_thinking": False})


def test_what_one_server_cannot_do_another_is_asked_and_a_broken_one_is_left():
    with serving(lambda body: (500, {"error": "CUDA error"}), echo) as (broken, good):
        rows = rows_of((broken, good), make_conversations(30), concurrency=2)
    assert not any("error" in row for row in rows.values())
    assert len(broken.seen) <= 6 * (STRIKES + 2), "three conversations in a row are enough to know it"


def test_a_rate_limit_is_no_reason_to_leave_a_server():
    asked = Counter()

    def reply(body):
        asked[body["seed"]] += 1
        return (429, {"error": "slow down"}) if asked[body["seed"]] < 6 else echo(body)

    with serving(reply) as servers:
        rows = rows_of(servers, make_conversations(8), concurrency=8)
    assert not any("error" in row for row in rows.values())


def after(seconds):
    def reply(body):
        time.sleep(seconds)
        return echo(body)

    return reply


def test_a_slow_server_gets_less():
    with serving(after(0.3), echo) as (tortoise, hare):
        rows = rows_of((tortoise, hare), make_conversations(40), concurrency=2)
    assert not any("error" in row for row in rows.values())
    assert len(tortoise.seen) < len(hare.seen)


def test_a_server_that_takes_requests_and_never_answers_is_left():
    with serving(after(3.0), echo) as servers:
        rows = list(engine_for(servers, patience=1.0, concurrency=4).run([Block(make_conversations(40), ())]))
    failed = [row for row in rows if "error" in row]
    assert len(rows) == 40
    assert STRIKES <= len(failed) < 12
    assert all("no answer within 1 s" in row["error"] for row in failed)


def test_no_server_has_more_than_its_requests_also_when_another_dies():
    with serving(lambda body: None, after(0.02), after(0.02)) as servers:
        rows = rows_of(servers, make_conversations(40), concurrency=3)
    assert not any("error" in row for row in rows.values())
    assert [server.peak for server in servers[1:]] == [3, 3]


def test_a_server_that_comes_back_is_used_again(monkeypatch):
    monkeypatch.setattr(pool, "PROBE_SECONDS", 0.05)
    asked = Counter()

    def flaky(body):
        asked["flaky"] += 1
        return None if asked["flaky"] <= 12 else echo(body)

    with serving(flaky, after(0.02)) as servers:
        rows = rows_of(servers, make_conversations(60), concurrency=2)
    assert not any("error" in row for row in rows.values())
    assert asked["flaky"] > 20


def test_a_conversation_that_no_server_survives_fails():
    deadly = "(2)"

    def reply(body):
        return None if deadly in body["messages"][-1]["content"] else echo(body)

    with serving(*[reply] * 6) as servers:
        rows = rows_of(servers, make_conversations(4), concurrency=1)
    assert [identity for identity, row in rows.items() if "error" in row] == ["c2"]
    assert sum(bool(server.seen) for server in servers) >= MOVES + 1


def test_a_proxy_is_not_asked_for_servers_here(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(echo) as servers:
        assert not any("error" in row for row in rows_of(servers, make_conversations(2)).values())
