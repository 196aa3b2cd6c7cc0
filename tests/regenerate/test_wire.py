"""HTTP as servers really speak it: in pieces, in chunks, to the end of the connection, or not at all."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from specforge.regenerate import wire
from specforge.regenerate.wire import Far, Near, Parser, Reply, wire_to

CONTENT = b'{"a": "\xc3\xa4"}'
REPLIES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + CONTENT,
    "lower case": b"HTTP/1.1 200 OK\r\ncontent-length:11\r\nx: y: z\r\n\r\n" + CONTENT,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n"
    + CONTENT[:4]
    + b"\r\n7;x=y\r\n"
    + CONTENT[4:]
    + b"\r\n0\r\nTrailer: z\r\n\r\n",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + CONTENT,
}


@pytest.mark.parametrize("raw", REPLIES.values(), ids=REPLIES)
def test_a_reply_is_the_same_in_whatever_pieces_it_comes(raw: bytes):
    for cut in range(len(raw)):
        parser = Parser()
        assert not parser.feed(raw[:cut])
        assert parser.feed(raw[cut:])
        assert parser.reply() == Reply(200, "OK", CONTENT)
        assert parser.reusable
    parser = Parser()
    assert [parser.feed(raw[n : n + 1]) for n in range(len(raw))] == [False] * (len(raw) - 1) + [True]


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
        (b"HTTP/1.1 503\r\n", True),
    ],
)
def test_a_connection_is_used_again_where_the_server_lets_it(head: bytes, reusable: bool):
    parser = Parser()
    assert parser.feed(head + b"Content-Length: 0\r\n\r\n")
    assert parser.reusable is reusable


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n",
        b"x" * (wire.MAX_HEAD + 1),
    ],
)
def test_what_is_no_http_is_refused(raw: bytes):
    with pytest.raises(ValueError, match=r".+"):
        Parser().feed(raw)


def test_what_follows_a_whole_reply_is_no_part_of_it_and_ends_the_connection():
    for rest in (REPLIES["length"].replace(b"200", b"404"), b"HTTP/1.1 500 No\r\n\r\nhello", b"garbage\r\n\r\n"):
        parser = Parser()
        assert parser.feed(REPLIES["length"] + rest)
        assert (parser.reply(), parser.reusable) == (Reply(200, "OK", CONTENT), False)


def test_a_change_of_protocol_is_refused():
    with pytest.raises(ValueError, match="another protocol"):
        Parser().feed(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")


def test_a_server_may_name_a_pause():
    parser = Parser()
    parser.feed(b"HTTP/1.1 429 Slow\r\nretry-after: 7\r\nContent-Length: 0\r\n\r\n")
    assert parser.reply() == Reply(429, "Slow", b"", "7")


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    return head + await reader.readexactly(int(length.split()[1]))


def posting(serve: Serve, count: int = 1, patience: float = 5.0, pause: float = 0.0) -> list[Reply | Exception]:
    """What so many requests in a row to that server come to."""

    async def run() -> list[Reply | Exception]:
        async def guarded(reader, writer):
            try:
                await serve(reader, writer)
            except asyncio.IncompleteReadError:
                pass  # the client is done
            finally:
                writer.close()

        async with await asyncio.start_server(guarded, "127.0.0.1", 0) as server:
            near = wire_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x", {"K": "v"}, patience)
            assert isinstance(near, Near)
            replies = []
            for _ in range(count):
                try:
                    replies.append(await near.post(b'{"q": 1}'))
                except (OSError, TimeoutError) as error:
                    replies.append(error)
                await asyncio.sleep(pause)
            await near.close()
            return replies

    return asyncio.run(run())


def test_requests_share_a_connection_and_say_what_they_should():
    seen, connections = [], []

    async def serve(reader, writer):
        connections.append(writer)
        while True:
            seen.append(await read_request(reader))
            writer.write(REPLIES["length"])

    assert posting(serve, count=3) == [Reply(200, "OK", CONTENT)] * 3
    assert len(connections) == 1
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert body == b'{"q": 1}'
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/x HTTP/1.1"
    assert {b"K: v", b"Content-Type: application/json", b"Content-Length: 8"} < set(lines)


def test_a_reply_may_end_with_the_connection():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT)

    assert posting(serve, count=2) == [Reply(200, "OK", CONTENT)] * 2


def test_a_header_of_an_early_hint_says_nothing_of_the_reply():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + CONTENT)

    assert posting(serve) == [Reply(200, "OK", CONTENT)]


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", REPLIES["length"][:-1], REPLIES["chunks"][:-1]])
def test_a_server_that_hangs_up_in_the_middle_is_an_error(said: bytes):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(said)

    (error,) = posting(serve)
    assert isinstance(error, ConnectionResetError)


def test_a_connection_that_the_server_closed_meanwhile_is_not_used():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(REPLIES["length"])

    assert posting(serve, count=3, pause=0.05) == [Reply(200, "OK", CONTENT)] * 3


def test_a_late_reply_is_not_taken_for_the_next_ones():
    numbers = iter(range(9))

    async def serve(reader, writer):
        while True:
            await read_request(reader)
            number = next(numbers)
            await asyncio.sleep(0.3 if number == 0 else 0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)

    late, *rest = posting(serve, count=3, patience=0.15, pause=0.1)
    assert isinstance(late, TimeoutError)
    assert [reply.content for reply in rest] == [b"1", b"2"]


def test_what_is_no_http_or_not_there_is_an_error():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"220 mail.example\r\n\r\n")

    (error,) = posting(serve)
    assert "speaks no HTTP" in str(error)
    with pytest.raises(OSError, match=r"refused|failed"):
        asyncio.run(Near(wire.urlsplit("http://127.0.0.1:9/x"), {}, 5.0).post(b""))


def test_tls_and_proxies_are_for_servers_far_away(monkeypatch):
    seen = []

    async def serve(reader, writer):
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 307 Elsewhere\r\nLocation: http://x.invalid\r\nContent-Length: 0\r\n\r\n")

    async def run() -> Reply:
        secure = wire_to("https://a.invalid/v1", {}, 5.0)
        assert isinstance(secure, Far)
        await secure.close()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            assert isinstance(wire_to("http://127.0.0.1:1/v1", {}, 5.0), Near)
            far = wire_to("http://a.invalid/v1", {"K": "v"}, 5.0)
            assert isinstance(far, Far)
            reply = await far.post(b"{}")
            await far.close()
            return reply

    assert asyncio.run(run()).status == 307, "a redirect is not followed"
    assert seen[0].startswith(b"POST http://a.invalid/v1 HTTP/1.1")
    assert b"K: v" in seen[0]


def test_a_server_far_away_that_is_not_there_is_the_same_error():
    async def run() -> None:
        far = Far("http://127.0.0.1:9/x", {}, 5.0, None)
        try:
            await far.post(b"")
        finally:
            await far.close()

    with pytest.raises(OSError, match=r"refused|connect"):
        asyncio.run(run())
