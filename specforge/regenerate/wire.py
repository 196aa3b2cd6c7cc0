"""A JSON request and its reply over HTTP: to servers nearby, of which much is asked, and to those far away.

Nearby is plain HTTP without a proxy, as between this process and the servers it starts. aiohttp takes 155 us for a
request there and hands it on through three turns of the event loop, so that requests gather in bursts and wait for
each other; the connection below, with httptools to read the reply, takes one turn and about a third of the time.
"""

import asyncio
from time import monotonic
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from specforge.regenerate.servers import HERE

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 4.0  # uvicorn hangs up after 5, and a request that meets that is lost
MAX_HEAD = 2**16  # bytes


class Reply(NamedTuple):
    status: int
    reason: str
    content: bytes
    retry_after: str = ""


class Wire(Protocol):
    """The way to one server."""

    async def post(self, body: bytes) -> Reply:
        """Raises OSError where the server cannot be reached or hangs up, TimeoutError where it takes too long."""

    async def close(self) -> None: ...


def wire_to(url: str, headers: dict[str, str], patience: float) -> Wire:
    """`patience` is in seconds, for a whole reply."""
    place, headers = urlsplit(url), {"Content-Type": "application/json"} | headers
    proxy = _proxy(place)
    if place.scheme == "http" and proxy is None and place.username is None:
        return Near(place, headers, patience)
    return Far(url, headers, patience, proxy)


def _proxy(place: SplitResult) -> str | None:
    """A proxy of the environment is for the world outside, not for servers on this machine."""
    if place.hostname is None or place.hostname in HERE or proxy_bypass(place.hostname):
        return None
    return getproxies().get(place.scheme)


class Parser:
    """One reply as its bytes come in, in whatever pieces."""

    def __init__(self) -> None:
        self.status, self.reason, self.reusable, self.whole = 0, "", True, False
        self.ends_with_connection = True  # unless a header says where it ends
        self._content = bytearray()
        self._head_bytes, self._retry_after = 0, ""
        self._reply: Reply | None = None
        self._parser = HttpResponseParser(self)

    def feed(self, data: bytes) -> bool:
        """Whether the reply is whole. Raises ValueError for what is no HTTP."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            raise ValueError("it changes to another protocol") from None
        except HttpParserError as error:
            if not self.whole:
                raise ValueError(str(error)) from None
            self.reusable = False
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                raise ValueError("its headers have no end")
        return self.whole

    def reply(self) -> Reply:
        return self._reply or Reply(self.status, self.reason, bytes(self._content), self._retry_after)

    # ---- what httptools calls ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Another message after the whole one is nobody's: what else comes through the connection is not trusted."""
        if self.whole:
            self.reusable = False
        self.reason, self.ends_with_connection = "", True

    def on_status(self, reason: bytes) -> None:
        self.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self.ends_with_connection = False
        elif name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if (status := self._parser.get_status_code()) >= 200:  # below, it will answer
            self.status = status

    def on_body(self, body: bytes) -> None:
        self._content += body

    def on_message_complete(self) -> None:
        if self.status and not self.whole:
            self._reply = self.reply()
            self.whole, self.reusable = True, self._parser.should_keep_alive()


class Connection(asyncio.Protocol):
    """Carries one request at a time."""

    def __init__(self) -> None:
        self.open, self.since = False, 0.0
        self._parser: Parser | None = None
        self._answer: asyncio.Future[Reply] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        if self._parser is None:  # nobody asked
            self.close()
            return
        try:
            if self._parser.feed(data):
                self._finish()
        except ValueError as error:
            self._fail(ConnectionError(f"the server speaks no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._parser and self._parser.status and self._parser.ends_with_connection:
            self._finish()
        self._fail(ConnectionResetError("the server hung up"))

    async def ask(self, request: bytes) -> Reply:
        self._parser, self._answer = Parser(), asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.open = False
        self._transport.abort()

    def _finish(self) -> None:
        parser, self._parser = self._parser, None
        if not parser.reusable:
            self.close()
        self.since = monotonic()
        if not self._answer.done():
            self._answer.set_result(parser.reply())

    def _fail(self, error: OSError) -> None:
        self._parser = None
        self.close()
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)


class Near:
    """See Wire. Keeps the connections that replies came through."""

    def __init__(self, place: SplitResult, headers: dict[str, str], patience: float):
        self._host, self._port, self._patience = place.hostname, place.port or 80, patience
        lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": place.netloc, **headers}.items())
        self._head = f"POST {place.path} HTTP/1.1\r\n{lines}Content-Length: %d\r\n\r\n".encode()
        self._idle: list[Connection] = []

    async def post(self, body: bytes) -> Reply:
        connection = self._kept() or await self._connect()
        try:
            async with asyncio.timeout(self._patience):
                reply = await connection.ask(self._head % len(body) + body)
        except BaseException:
            connection.close()
            raise
        if connection.open:
            self._idle.append(connection)
        return reply

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open and monotonic() - connection.since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return (await loop.create_connection(Connection, self._host, self._port))[1]
        except TimeoutError:
            raise ConnectionError(f"no connection within {CONNECT_SECONDS:.0f} s") from None


class Far:
    """See Wire. With TLS and proxies, by aiohttp."""

    def __init__(self, url: str, headers: dict[str, str], patience: float, proxy: str | None):
        self._url, self._proxy = url, proxy
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=patience, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def post(self, body: bytes) -> Reply:
        try:
            async with self._session.post(self._url, data=body, proxy=self._proxy, allow_redirects=False) as response:
                wait = response.headers.get("Retry-After", "")
                return Reply(response.status, response.reason or "", await response.read(), wait)
        except aiohttp.ConnectionTimeoutError:
            raise ConnectionError(f"no connection within {CONNECT_SECONDS:.0f} s") from None
        except aiohttp.ClientError as error:
            if isinstance(error, TimeoutError | OSError):
                raise
            raise ConnectionError(f"{type(error).__name__}: {error}") from None

    async def close(self) -> None:
        await self._session.close()
