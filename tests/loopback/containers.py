"""Calls meet containers: queues, starts, timeouts, retries, and what becomes of a call whose container ends."""

import asyncio
import codecs
import logging
import os
import shutil
import signal
import time

from modal_proto import api_pb2 as pb
from psutil import Process

from loopback.launch import launch
from loopback.state import App, Backend, Call, CallState, Container, Function

log = logging.getLogger("loopback")
Result = pb.GenericResult
MOST_CONTAINERS = 32  # of a function that does not say
GRACE = 30.0  # seconds from the interrupt of a container that is to be taken away until it is killed
STATES = {
    Result.GENERIC_STATUS_SUCCESS: CallState.SUCCEEDED,
    Result.GENERIC_STATUS_TIMEOUT: CallState.TIMED_OUT,
    Result.GENERIC_STATUS_TERMINATED: CallState.CANCELLED,
}


class Pool:
    """Starts as many containers as calls wait for, a few at a time, since starting one takes a second of processor."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.closing = False
        self._starting = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._lives: set[asyncio.Task] = set()

    def enqueue(self, call: Call, first: bool = False) -> None:
        call.state = CallState.PENDING
        queue = call.function.queue
        if first:
            queue.appendleft(call)
        else:
            queue.append(call)
        self._scale(call.function)
        self.backend.notify()

    def assign(self, call: Call, container: Container) -> None:
        """The call has gone to the container, and its time runs."""
        call.state = CallState.RUNNING
        container.call = container.last_call = call
        seconds = container.definition.timeout_secs or 300
        asyncio.get_running_loop().call_later(seconds, self._time_out, container, call, call.retries)

    def settle(self, call: Call, result: Result, data_format: int = 0) -> None:
        """An attempt is over: the call's result is known, or another attempt follows."""
        policy = call.function.definition.retry_policy
        again = result.status in {Result.GENERIC_STATUS_FAILURE, Result.GENERIC_STATUS_TIMEOUT}
        if again and call.asynchronous and call.retries < policy.retries:
            delay = policy.initial_delay_ms * policy.backoff_coefficient**call.retries
            call.retries += 1
            call.state = CallState.PENDING
            loop = asyncio.get_running_loop()
            loop.call_later(min(delay, policy.max_delay_ms or delay) / 1000, self._retry, call)
            return
        call.state = STATES.get(result.status, CallState.FAILED)
        call.output = pb.FunctionGetOutputsItem(
            result=result,
            input_id=call.input_id,
            data_format=data_format,
            retry_count=call.retries,
            output_created_at=time.time(),
        )
        self.backend.notify()

    def terminate(self, call: Call) -> None:
        """Ends a call for good, and the container at work on it."""
        if call.output is not None:
            return
        if call in call.function.queue:
            call.function.queue.remove(call)
        self.settle(call, Result(status=Result.GENERIC_STATUS_TERMINATED, exception="Input was cancelled by user"))
        for container in self.backend.containers.values():
            if container.call is call:
                container.call = None
                self.kill(container, wanted=True)

    def kill(self, container: Container, wanted: bool = False) -> None:
        """Ends all processes of a container at once; unless `wanted`, that counts as a failure."""
        container.stopping = container.stopping or wanted
        if container.process is not None and container.process.returncode is None:
            container.process.kill()

    async def preempt(self, container: Container) -> None:
        """Takes a container away as Modal does: an interrupt, time to leave, and its call starts over elsewhere."""
        container.lost = True
        os.kill(main_process(container), signal.SIGINT)
        if not await self.backend.until(lambda: container.id not in self.backend.containers, GRACE):
            log.warning("%s did not leave within %.0f s and loses what it has not committed", container.id, GRACE)
            self.kill(container)

    async def stop_app(self, app: App) -> None:
        """Idle containers leave by themselves and so commit their volumes; calls under way are cut off."""
        app.state = pb.APP_STATE_STOPPED
        for call in [c for c in self.backend.calls.values() if c.function.app is app]:
            self.terminate(call)
        mine = [c for c in self.backend.containers.values() if c.function.app is app]
        for container in mine:
            container.stopping = True
        self.backend.notify()
        await self.backend.until(lambda: not any(c.id in self.backend.containers for c in mine), 10)
        for container in mine:
            self.kill(container)
        app.done = True
        self.backend.notify()

    async def close(self) -> None:
        self.closing = True
        for container in self.backend.containers.values():
            self.kill(container, wanted=True)
        if self._lives:
            await asyncio.wait(self._lives)

    def _retry(self, call: Call) -> None:
        if call.output is None and not self.closing:
            self.enqueue(call)

    def _time_out(self, container: Container, call: Call, attempt: int) -> None:
        if container.call is not call or call.retries != attempt:
            return
        container.call = None
        self.kill(container, wanted=True)
        seconds = container.definition.timeout_secs or 300
        text = f"Task's current input {call.input_id} hit its timeout of {seconds}s"
        self.settle(call, Result(status=Result.GENERIC_STATUS_TIMEOUT, exception=text))

    def _scale(self, function: Function) -> None:
        definition = function.definition
        live = [
            container
            for container in self.backend.containers.values()
            if container.function is function and not container.stopping and container.version == function.newest
        ]
        single = definition.single_use_containers
        free = sum(c.call is None and not (single and c.last_call) for c in live)
        room = (definition.concurrency_limit or MOST_CONTAINERS) - len(live)
        for _ in range(0 if self.closing else min(len(function.queue) - free, room)):
            name = self.backend.new_id("ta")
            folder = self.backend.folder / "containers" / name
            container = Container(name, function, definition, function.newest, folder)
            self.backend.containers[name] = container
            life = asyncio.create_task(self._live(container))
            self._lives.add(life)
            life.add_done_callback(self._lives.discard)

    async def _live(self, container: Container) -> None:
        code = 0
        try:
            async with self._starting:
                if not container.stopping:
                    await launch(self.backend, container)
                    if container.stopping:
                        self.kill(container)
                    started = asyncio.create_task(container.ready.wait())
                    reading = asyncio.create_task(self._read(container))
                    await asyncio.wait({started, reading}, return_when=asyncio.FIRST_COMPLETED)
                    started.cancel()
            if container.process is not None:
                await reading
                code = await container.process.wait()
        except Exception as error:  # its call must fail, not wait for ever
            log.exception("%s", container.id)
            text = f"The loopback server could not run a container: {error!r}"
            container.failure = Result(status=Result.GENERIC_STATUS_FAILURE, exception=text)
        self._bury(container, code)

    def _bury(self, container: Container, code: int) -> None:
        """The container has ended: its private copies are gone, and its call fails or starts over."""
        call, function = container.call, container.function
        failure = container.failure
        if failure is None and (call or (code and not container.stopping)):
            text = f"Container {container.id} ended with code {code}"
            failure = Result(status=Result.GENERIC_STATUS_FAILURE, exception=text, exitcode=code)
        container.stopping, container.call = True, None
        del self.backend.containers[container.id]
        shutil.rmtree(container.folder, ignore_errors=True)
        if self.closing:
            return
        if call and container.lost:
            self.enqueue(call, first=True)
        elif call:
            self.settle(call, failure)
        elif failure and container.last_call is None and function.queue:
            self.settle(function.queue.popleft(), failure)
        self._scale(function)
        self.backend.notify()

    async def _read(self, container: Container) -> None:
        """What the container writes goes to the log of the call that it last began."""

        async def pump(stream: asyncio.StreamReader, descriptor: int) -> None:
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            logs = container.function.app.logs
            while data := await stream.read(1 << 16):
                call = container.last_call.id if container.last_call else ""
                now = time.time()
                line = pb.TaskLogs(
                    data=decoder.decode(data), file_descriptor=descriptor, function_call_id=call, timestamp=now
                )
                batch = pb.TaskLogsBatch(task_id=container.id, function_id=container.function.id, items=[line])
                batch.entry_id = str(len(logs) + 1)
                logs.append(batch)
                self.backend.notify()

        process = container.process
        await asyncio.gather(
            pump(process.stdout, pb.FILE_DESCRIPTOR_STDOUT), pump(process.stderr, pb.FILE_DESCRIPTOR_STDERR)
        )


def main_process(container: Container) -> int | None:
    """The entrypoint's process id on this machine: `unshare` has started the shell, and that the entrypoint.

    None while the shell still mounts what the container is to see, and once it has ended.
    """
    if not container.ready.is_set() or container.process.returncode is not None:
        return None
    family = Process(container.process.pid).children(recursive=True)
    return family[1].pid if len(family) > 1 else None
