"""The server that a test starts: a thread of its own serves clients while the test looks at it and meddles."""

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from grpclib.server import Server
from modal_proto import api_pb2 as pb

from loopback import namespace
from loopback.containers import Pool, main_process
from loopback.launch import recipe
from loopback.rpc_apps import AppRpcs
from loopback.rpc_calls import CallRpcs
from loopback.rpc_objects import ObjectRpcs
from loopback.rpc_volumes import VolumeRpcs
from loopback.state import Backend, CallState, Container, Controls
from loopback.transfers import Transfers
from loopback.wire import ENVIRONMENT, Router, listen

T = TypeVar("T")


@dataclass(frozen=True)
class CallRecord:
    """A call as it stood when asked about."""

    id: str
    function: str
    state: CallState
    retries: int
    definition: pb.Function  # with the options that it was called with


@dataclass(frozen=True)
class ContainerRecord:
    """A container at work or waiting for a call; `pid` is its entrypoint's on this machine."""

    id: str
    function: str
    pid: int | None
    call: str | None


@dataclass(frozen=True)
class Resources:
    """What a definition asks for, in the words of the decorator."""

    gpu: str | None
    cpu: float
    memory: int
    timeout: int
    retries: int
    secrets: list[str]
    volumes: dict[str, str]  # {mount path: name}
    image: list[str]  # Dockerfile commands of all layers


class Loopback(Controls):
    """Serves from `with` to its end; everything below may be used from the test's thread meanwhile."""

    def __init__(
        self,
        folder: Path,
        secrets: dict[str, dict[str, str]] | None = None,
        container_env: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._backend = Backend(folder / "loopback", secrets or {}, container_env or {}, controls=self)
        self._pool = Pool(self._backend)
        self._transfers = Transfers(self._backend)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback", daemon=True)

    @staticmethod
    def available() -> bool:
        """Whether this machine lets this user make the namespaces that containers need."""
        return namespace.unshare_flags() is not None

    def __enter__(self) -> "Loopback":
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process's modal client talk to this server and read no settings of the user's."""
        token_id, token_secret = self._backend.token
        return {
            "MODAL_SERVER_URL": self._backend.url,
            "MODAL_TOKEN_ID": token_id,
            "MODAL_TOKEN_SECRET": token_secret,
            "MODAL_CONFIG_PATH": "/dev/null",
            "MODAL_ENVIRONMENT": ENVIRONMENT,
            "MODAL_DISABLE_API_PROXY": "1",
        }

    @property
    def spawned(self) -> Counter[str]:
        """{function: calls made}, `.remote()` and retries of the client included."""
        return Counter(call.function for call in self.calls)

    @property
    def calls(self) -> list[CallRecord]:
        def look() -> list[CallRecord]:
            return [
                CallRecord(c.id, c.function.name, c.state, c.retries, c.function.definition)
                for c in self._backend.calls.values()
            ]

        return self._ask(look)

    @property
    def definitions(self) -> dict[str, pb.Function]:
        """{function: as last published}; those made by `with_options` are in `variants`."""
        functions = self._backend.functions
        return self._ask(lambda: {f.name: f.definition for f in functions.values() if f.base is None and f.version})

    @property
    def variants(self) -> list[pb.Function]:
        """The definitions that `with_options` has made, in order."""
        functions = self._backend.functions
        return self._ask(lambda: [f.definition for f in functions.values() if f.base is not None])

    def resources(self, definition: pb.Function) -> Resources:
        """A recorded definition with names in place of ids."""
        backend, asked = self._backend, definition.resources
        gpu = f"{asked.gpu_config.gpu_type}:{asked.gpu_config.count}" if asked.gpu_config.gpu_type else None

        def look() -> Resources:
            layers = recipe(backend, definition.image_id)
            return Resources(
                gpu=gpu,
                cpu=asked.milli_cpu / 1000,
                memory=asked.memory_mb,
                timeout=definition.timeout_secs,
                retries=definition.retry_policy.retries,
                secrets=[backend.secrets[secret][0] for secret in definition.secret_ids],
                volumes={m.mount_path: backend.volumes[m.volume_id].name for m in definition.volume_mounts},
                image=[line for image in layers for line in image.dockerfile_commands],
            )

        return self._ask(look)

    def containers(self) -> list[ContainerRecord]:
        """Those that have started and not yet ended."""

        def look() -> list[ContainerRecord]:
            return [
                ContainerRecord(c.id, c.function.name, main_process(c), c.call.id if c.call else None)
                for c in self._backend.containers.values()
                if c.process is not None
            ]

        return self._ask(look)

    def kill_container(self, function: str, timeout: float = 20) -> str:
        """Kills a container that works on a call, as when its machine is lost; waits for one, returns its id.

        What it has not committed is gone, and its call has failed once: it is retried if its function allows.
        """

        async def kill() -> str:
            container = await self._working(function, timeout)
            self._pool.kill(container)
            await self._backend.until(lambda: container.id not in self._backend.containers, 10)
            return container.id

        return self._run(kill())

    def preempt_container(self, function: str, timeout: float = 20) -> str:
        """Takes such a container away with an interrupt first; its call starts over, with no retry counted."""

        async def preempt() -> str:
            container = await self._working(function, timeout)
            await self._pool.preempt(container)
            return container.id

        return self._run(preempt())

    def volume(self, name: str) -> Path:
        """The committed tree of a volume, for tests to look at and to damage."""
        return self._ask(lambda: next(v.root for v in self._backend.volumes.values() if v.name == name))

    async def _working(self, function: str, timeout: float) -> Container:
        def look() -> list[Container]:
            live = self._backend.containers.values()
            return [c for c in live if c.function.name == function and c.call is not None and not c.stopping]

        if not (found := await self._backend.until(look, timeout)):
            raise TimeoutError(f"No container of {function} has begun a call within {timeout:g} s")
        return found[0]

    async def _start(self) -> None:
        backend, pool = self._backend, self._pool
        router = Router(
            backend, [ObjectRpcs(backend), AppRpcs(backend, pool), CallRpcs(backend, pool), VolumeRpcs(backend)]
        )
        await self._transfers.start()
        self._server = Server([router.endpoint()])
        listening, backend.url = listen()
        await self._server.start(sock=listening)

    async def _stop(self) -> None:
        await self._pool.close()
        self._server.close()
        await self._server.wait_closed()
        await self._transfers.stop()

    def _run(self, work: Awaitable[T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _ask(self, look: Callable[[], T]) -> T:
        async def answer() -> T:
            return look()

        return self._run(answer())
