"""The wire: listening sockets, and the routing of every RPC of the protocol to the code that serves it."""

import inspect
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from grpclib import GRPCError, Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Stream
from modal_proto import api_pb2 as pb
from modal_proto.api_grpc import ModalClientBase

from loopback.state import Backend, Container

log = logging.getLogger("loopback")
CALLER_HEADER = "x-loopback-container"
ENVIRONMENT = "main"
RPC_NAMES: frozenset[str] = ModalClientBase.__abstractmethods__


def listen() -> tuple[socket.socket, str]:
    """A socket on a free port and its URL.

    It names TCP, or asyncio would not switch Nagle's algorithm off and every call would take 40 ms longer.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    return listening, f"http://127.0.0.1:{listening.getsockname()[1]}"


class Router:
    """Hands each RPC to the handler of its name and refuses the rest.

    A handler takes the request, and if only containers send it the container, and returns, awaits or yields replies.
    """

    def __init__(self, backend: Backend, services: list[object]) -> None:
        self.backend = backend
        self.handlers = {name: getattr(s, name) for s in services for name in RPC_NAMES if hasattr(s, name)}

    def endpoint(self) -> ModalClientBase:
        """What grpclib mounts: all RPCs of the protocol."""
        return type("Endpoint", (ModalClientBase,), {name: self._method(name) for name in RPC_NAMES})()

    def _method(self, name: str) -> Callable[[ModalClientBase, Stream], Awaitable[None]]:
        async def serve(_: ModalClientBase, stream: Stream) -> None:
            try:
                await self._serve(name, stream)
            except (GRPCError, StreamTerminatedError):
                raise
            except Exception as error:  # a bug of the stand-in: with a status that the client does not retry
                log.exception("%s", name)
                raise GRPCError(Status.DATA_LOSS, f"Bug in the loopback server, {name}: {error!r}") from error

        return serve

    async def _serve(self, name: str, stream: Stream) -> None:
        request = await stream.recv_message()
        caller = self._caller(stream)
        self.backend.controls.requests["container" if caller else "client"][name] += 1
        if name not in self.handlers:
            raise self.backend.unserved(name)
        self._check_environment(request)
        handler = self.handlers[name]
        if len(inspect.signature(handler).parameters) == 1:
            reply = handler(request)
        elif caller is not None:
            reply = handler(request, caller)
        else:
            raise GRPCError(Status.FAILED_PRECONDITION, f"{name} is for containers")
        if inspect.isasyncgen(reply):
            async for message in reply:
                await stream.send_message(message)
        else:
            await stream.send_message(await reply if inspect.isawaitable(reply) else reply)

    def _caller(self, stream: Stream) -> Container | None:
        """The container that its start gave a header to send; a client has to show its token instead."""
        if name := stream.metadata.get(CALLER_HEADER):
            if name in self.backend.containers:
                return self.backend.containers[name]
            raise GRPCError(Status.FAILED_PRECONDITION, f"Container {name} has ended")
        shown = (stream.metadata.get("x-modal-token-id"), stream.metadata.get("x-modal-token-secret"))
        if shown != self.backend.token:
            raise GRPCError(Status.UNAUTHENTICATED, "Token validation failed")
        return None

    def _check_environment(self, request: Any) -> None:
        name = getattr(request, "environment_name", "")
        if isinstance(request, pb.EnvironmentGetOrCreateRequest):
            name = request.deployment_name
        if name not in {"", ENVIRONMENT}:
            raise GRPCError(Status.NOT_FOUND, f"Environment '{name}' not found")
