"""Which server a conversation is at, and what becomes of it when servers are slow, wrong, broken or dead."""

import threading
import time
from collections import Counter, defaultdict
from email.utils import formatdate

import pytest
from fake_server import echo, engine_for, rows_of, serving
from tiny import make_conversations

from specforge.errors import UserError
from specforge.regenerate import pool
from specforge.regenerate.engine import Block
from specforge.regenerate.pool import MOVES, STRIKES


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


def test_what_one_server_cannot_do_another_is_asked_and_a_broken_one_is_left():
    with serving(lambda body: (500, {"error": "CUDA error"}), echo) as (broken, good):
        rows = rows_of((broken, good), make_conversations(30), concurrency=2)
    assert not any("error" in row for row in rows.values())
    assert len(broken.seen) <= 6 * (STRIKES + 2), "three conversations in a row are enough to know it"


def test_a_rate_limit_is_no_reason_to_leave_a_server():
    asked = Counter()

    def reply(body):
        asked[body["seed"]] += 1
        return (429, {"error": "slow down"}) if asked[body["seed"]] < 9 else echo(body)

    with serving(reply) as servers:
        rows = rows_of(servers, make_conversations(8), concurrency=8)
    assert not any("error" in row for row in rows.values())


@pytest.mark.parametrize("date", [False, True])
def test_a_server_that_names_a_pause_gets_it(date):
    times = []

    def reply(body):
        times.append(time.monotonic())
        wait = formatdate(time.time() + 2, usegmt=True) if date else "1"
        return (429, {"error": "slow down"}, {"Retry-After": wait}) if len(times) == 1 else echo(body)

    with serving(reply) as servers:
        rows = rows_of(servers, make_conversations(1))
    assert "error" not in rows["c0"]
    assert times[1] - times[0] > 0.9


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "60"}, {"Retry-After": "soon"}])
def test_a_rate_limit_that_lasts_fails_when_patience_runs_out(headers):
    began = time.monotonic()
    with serving(lambda body: (429, {"error": "slow down"}, headers)) as servers:
        rows = rows_of(servers, make_conversations(1), patience=2.0)
    assert rows["c0"]["error"] == "turn 3: HTTP 429: slow down"
    assert time.monotonic() - began < 3
    assert len(servers[0].seen) > 6 or headers.get("Retry-After") == "60"


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


def test_conversations_of_a_server_that_never_answers_move_on(caplog):
    with serving(after(3.0), echo) as (hanging, good):
        rows = rows_of((hanging, good), make_conversations(40), patience=1.0, concurrency=4)
    assert len(rows) == 40
    assert not any("error" in row for row in rows.values())
    assert STRIKES <= len(hanging.seen) <= 4, "nobody goes back to it"
    assert "does not answer any more (no answer within 1 s); its conversations move on" in caplog.text


def test_where_no_other_server_is_a_conversation_without_an_answer_fails():
    with serving(after(1.0)) as servers:
        rows = rows_of(servers, make_conversations(2), patience=0.2)
    assert rows["c1"] == {"id": "c1", "error": "turn 2: no answer within 0 s"}
    assert len(servers[0].seen) == 2


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
