"""What the stand-in knows: apps, functions, calls, containers and volumes, and what tests have asked it to do."""

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

T = TypeVar("T")


class CallState(StrEnum):
    """Where a call stands; the last four are final."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class App:
    """An app, deployed or of one `app.run()`, with every line that its containers wrote."""

    id: str
    name: str
    state: int
    functions: dict[str, str] = field(default_factory=dict)  # {tag: function id}
    logs: list[pb.TaskLogsBatch] = field(default_factory=list)
    done: bool = False


@dataclass(eq=False)
class Function:
    """A function as last published, or one of its `with_options` variants (then `base` is set)."""

    id: str
    app: App
    name: str
    base: "Function | None" = None
    options: pb.FunctionOptions = field(default_factory=pb.FunctionOptions)
    published: pb.Function = field(default_factory=pb.Function)
    created: pb.Function | None = None  # what the next publication puts in force
    handle: pb.FunctionHandleMetadata = field(default_factory=pb.FunctionHandleMetadata)
    version: int = 0
    queue: deque["Call"] = field(default_factory=deque)

    @property
    def newest(self) -> int:
        """How often it was published: a container of an older publication gets no new call."""
        return (self.base or self).version

    @property
    def definition(self) -> pb.Function:
        """What a container that starts now is given. A variant follows its function through deployments."""
        if self.base is None:
            return self.published
        result, options = pb.Function(), self.options
        result.CopyFrom(self.base.published)
        result.resources.MergeFrom(options.resources)
        if options.HasField("retry_policy"):
            result.retry_policy.CopyFrom(options.retry_policy)
        for name in ("timeout_secs", "concurrency_limit", "task_idle_timeout_secs"):
            if options.HasField(name):
                setattr(result, name, getattr(options, name))
        for name, replace in (
            ("secret_ids", options.replace_secret_ids),
            ("volume_mounts", options.replace_volume_mounts),
        ):
            if replace:
                result.ClearField(name)
                getattr(result, name).MergeFrom(getattr(options, name))
        return result


@dataclass(eq=False)
class Call:
    """One call of a function, which here has exactly one input."""

    id: str
    input_id: str
    function: Function
    input: pb.FunctionInput
    asynchronous: bool  # made by .spawn(): the backend retries it; .remote() retries by itself
    created_at: float
    retries: int = 0
    state: CallState = CallState.PENDING
    output: pb.FunctionGetOutputsItem | None = None


@dataclass(eq=False)
class Volume:
    """A volume: `root` is the committed tree."""

    id: str
    name: str
    root: Path

    @property
    def metadata(self) -> pb.VolumeMetadata:
        return pb.VolumeMetadata(name=self.name, version=pb.VOLUME_FS_VERSION_V2)


@dataclass(eq=False)
class Container:
    """A container: the process in its namespace, what it works on, its copies of the volumes."""

    id: str
    function: Function
    definition: pb.Function
    version: int
    folder: Path
    process: asyncio.subprocess.Process | None = None
    call: Call | None = None
    last_call: Call | None = None  # whose log its lines belong to
    views: dict[str, "View"] = field(default_factory=dict)  # {volume id: ...}
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # has asked for a call, or has ended
    stopping: bool = False
    lost: bool = False  # taken away: the call that it had starts over and no retry is counted
    failure: pb.GenericResult | None = None


@dataclass
class View:
    """A container's copy of a volume, and for each path what it and the committed tree were when they last agreed."""

    root: Path
    agreed: dict[str, tuple[tuple, tuple]] = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class Controls:
    """What a test may set, and what is counted for it."""

    refuse_calls: tuple[Status, str] | None = None  # every new call fails with it, as when a quota is used up
    fail_image_builds: str | None = None  # the build of every image fails with it
    corrupt_downloads: int = 0  # so many more blocks of volume files are sent with flipped bytes
    uploaded_bytes: int = 0  # of volume files; blocks that the server has already are not sent again
    requests: dict[str, Counter[str]] = field(default_factory=lambda: {"client": Counter(), "container": Counter()})
    unknown_rpcs: list[str] = field(default_factory=list)  # asked for and not served


class Backend:
    """All state, owned by the event loop of the server."""

    def __init__(
        self, folder: Path, secrets: dict[str, dict[str, str]], container_env: dict[str, str], controls: Controls
    ) -> None:
        self.folder = folder
        self.controls = controls
        self.token = ("ak-loopback", "as-loopback")
        self.container_env = container_env
        self.url = self.http_url = ""
        self.apps: dict[str, App] = {}
        self.functions: dict[str, Function] = {}
        self.calls: dict[str, Call] = {}
        self.containers: dict[str, Container] = {}
        self.volumes: dict[str, Volume] = {}
        self.secrets = {f"st-{name}": (name, dict(values)) for name, values in secrets.items()}
        self.mounts: dict[str, list[pb.MountFile]] = {}
        self.images: dict[str, pb.Image] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-LB{next(self._numbers):06d}"

    def unserved(self, what: str) -> GRPCError:
        """The refusal of what this stand-in does not do, noted for the test."""
        self.controls.unknown_rpcs.append(what)
        return GRPCError(Status.UNIMPLEMENTED, f"The loopback server does not serve {what}")

    def notify(self) -> None:
        """Lets everyone in `until` look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, look: Callable[[], T], timeout: float) -> T:
        """What `look` returns as soon as that is true, or after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not (seen := look()) and (left := deadline - loop.time()) > 0:
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                return look()
        return seen


def not_found(what: str) -> GRPCError:
    return GRPCError(Status.NOT_FOUND, what)
