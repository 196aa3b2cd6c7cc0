"""One job on Modal: found running or finished, or started; waited for; its outputs brought home."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import modal
from modal import exception as raised

from specforge.cloud import ledger
from specforge.cloud.deploy import ensure_deployed
from specforge.cloud.detached import Detached
from specforge.cloud.errors import PASSING, explain
from specforge.cloud.job import Job
from specforge.cloud.mirror import Mirror, gone, read_receipt
from specforge.cloud.package import package_digest
from specforge.cloud.places import finished
from specforge.cloud.plan import remember
from specforge.errors import UserError
from specforge.provenance import commit

log = logging.getLogger("specforge")

WAIT_SECONDS = 60.0  # of one question whether a call is over
PATIENCE_SECONDS = 1800.0  # without any answer from Modal, before a waiting job gives up and leaves the call running
LAST_WORDS_SECONDS = 15.0  # to wait for what a finished container still had to say
RESTARTS = 3  # of a call whose inputs changed under it


_leaving = threading.Event()  # a broken stream is nothing to tell of then


@dataclass
class Remote:
    """A job and where it runs: `name` is the Modal function, `request` what its step takes."""

    name: str
    job: Job
    request: dict[str, Any]

    def __post_init__(self) -> None:
        self.place = self.job.place
        self.mirror = Mirror(self.place["environment"])

    def run(self) -> Any:
        """Returns what the step returned, or None when the outputs were there already. Raises UserError, Detached."""
        try:
            ensure_deployed(self.place)
            for _ in range(RESTARTS):
                inputs, guests = self.mirror.bring(self.job.inputs)
                work = self.job.work(self.request, inputs)
                answer = self._answer(work, inputs, guests)
                if not (drift := answer.get("drift")):
                    return self._receive(answer)
                self._mend(drift)
        except (raised.Error, *PASSING) as error:
            raise explain(error, self.job.rule) from error
        raise UserError(f"{self.job.rule}: its inputs on the volume changed {RESTARTS} times; who else writes there?")

    # ---- starting ------------------------------------------------------------------------------------------------

    def _answer(self, work: str, inputs: dict[str, str], guests: dict[str, str]) -> dict[str, Any]:
        with ledger.held(work):
            done = self._done(work)
            if done:
                return done
            call = self._running(work) or self._start(work, inputs, guests)
        answer = self._wait(work, call)
        ledger.drop(work, call.object_id)
        return answer

    def _done(self, work: str) -> dict[str, Any] | None:
        """The answer of an earlier call of this very work, when the volumes still hold what it made."""
        answer = self.mirror.read_json(finished(work))
        if answer is None:
            return None
        if missing := self.mirror.missing(answer["files"]):
            log.warning("made before, but gone from the volume or changed there, so made anew: %s", ", ".join(missing))
            return None
        record = ledger.find(work)
        if record:
            log.info("%s: call %s is over", self.job.rule, record["call"])
            ledger.drop(work, record["call"])
        else:
            log.info("%s: the volume holds the results of this very work", self.job.rule)
        return answer

    def _running(self, work: str) -> modal.FunctionCall | None:
        """A call of this work from an earlier command or another terminal, unless it failed or is unknown by now."""
        record = ledger.find(work)
        if record is None:
            return None
        call = modal.FunctionCall.from_id(record["call"])
        try:
            call.get(timeout=0)
        except raised.OutputExpiredError:
            log.info("%s: the answer of call %s has expired; starting anew", self.job.rule, record["call"])
        except (TimeoutError, raised.TimeoutError) as error:
            if isinstance(error, raised.FunctionTimeoutError):
                self._report(record, error)
            else:
                log.info("%s: attached to call %s, which is running", self.job.rule, record["call"])
                return call
        except raised.NotFoundError:
            log.info("%s: call %s is unknown to Modal by now; starting anew", self.job.rule, record["call"])
        except PASSING:
            raise
        except Exception as error:  # whatever the container raised
            self._report(record, error)
        else:
            return call  # over; its answer is collected like any other
        ledger.drop(work, record["call"])
        return None

    def _report(self, record: dict[str, Any], error: Exception) -> None:
        log.warning("%s: call %s failed; starting anew. %s", self.job.rule, record["call"], explain(error, "it said"))

    def _start(self, work: str, inputs: dict[str, str], guests: dict[str, str]) -> modal.FunctionCall:
        self._supersede(work)
        order = {
            "work": work, "package": package_digest(), "commit": commit(), "inputs": inputs, "guests": guests,
            "outputs": list(self.job.outputs),
        }  # fmt: skip
        try:
            call = self._function().spawn(order=order, **self.request)
        except raised.NotFoundError as error:
            if "Secret" in str(error):
                raise
            ensure_deployed(self.place, anew=True)  # stopped or deleted since
            call = self._function().spawn(order=order, **self.request)
        ledger.note(
            work, call.object_id, rule=self.job.rule, function=self.name, experiment=self.place["experiment"],
            outputs=list(self.job.outputs), log=self.job.log, gpus=self.place["gpus"],
            environment=self.place["environment"], app=self.place["app"],
        )  # fmt: skip
        log.info("%s: started as call %s on %s", self.job.rule, call.object_id, self.place["gpus"] or "CPUs")
        return call

    def _function(self) -> modal.Function:
        place = self.place
        options: dict[str, Any] = {
            "timeout": int(place["timeout_hours"] * 3600),
            "retries": modal.Retries(max_retries=place["retries"], initial_delay=1.0),
        }
        if place["gpus"]:
            options["gpu"] = place["gpus"]
        if (self.request.get("wandb") or {}).get("project"):
            names = ("huggingface-secret", "wandb-secret")
            options["secrets"] = [modal.Secret.from_name(n, environment_name=place["environment"]) for n in names]
        function = modal.Function.from_name(place["app"], self.name, environment_name=place["environment"])
        return function.with_options(**options)

    def _supersede(self, work: str) -> None:
        """Ends calls that would write over this work's outputs: the same job before an edit."""
        for record in ledger.rivals(work, self.job.outputs):
            log.warning("%s: call %s made the same files from older settings or code; cancelled", *_who(record))
            cancel(record)

    # ---- waiting -------------------------------------------------------------------------------------------------

    def _wait(self, work: str, call: modal.FunctionCall) -> dict[str, Any]:
        silent_since = None
        with _detachable(self.job.rule, call.object_id), _telling(call):
            while True:
                try:
                    return call.get(timeout=WAIT_SECONDS)
                except raised.OutputExpiredError:
                    raise
                except raised.FunctionTimeoutError as error:
                    ledger.drop(work, call.object_id)
                    raise explain(error, f"{self.job.rule}, call {call.object_id}") from error
                except (TimeoutError, raised.TimeoutError):
                    silent_since = None
                except PASSING as error:
                    silent_since = silent_since or time.monotonic()
                    if time.monotonic() - silent_since > PATIENCE_SECONDS:
                        raise
                    log.warning("%s: no word from Modal (%s); asking again", self.job.rule, type(error).__name__)
                    time.sleep(5)
                except Exception as error:
                    ledger.drop(work, call.object_id)
                    raise explain(error, f"{self.job.rule}, call {call.object_id}") from error

    # ---- receiving -----------------------------------------------------------------------------------------------

    def _receive(self, answer: dict[str, Any]) -> Any:
        if error := answer.get("error"):
            raise UserError(error)
        if trace := answer.get("traceback"):
            if answer["memory"]:
                raise UserError(
                    f"{self.job.rule}: the GPU ran out of memory on {self.place['gpus']}; lower train.micro_tokens or "
                    f"choose another `gpu`. It said:\n{trace}"
                )
            raise RuntimeError(f"{self.job.rule} failed on Modal:\n{trace}")
        self.mirror.collect(answer["files"], self.place["sync"]["checkpoints"])
        if "result" in answer:
            remember(self.job.rule, self.place["gpus"], answer["seconds"])
        return answer.get("result")

    def _mend(self, drift: list[str]) -> None:
        """Has inputs that the container found wrong uploaded again; a receipt has nothing to upload."""
        if lost := [path for path in drift if read_receipt(path)]:
            raise gone(lost)
        log.warning("%s: changed or gone on the volume; uploaded again", ", ".join(drift))
        self.mirror.distrust(drift)


def cancel(record: dict[str, Any]) -> None:
    """Ends a call and its container; one that is over or unknown is only forgotten."""
    try:
        modal.FunctionCall.from_id(record["call"]).cancel(terminate_containers=True)
    except raised.NotFoundError:
        log.info("%s: call %s is unknown to Modal by now", *_who(record))
    ledger.drop(record["work"], record["call"])


def _who(record: dict[str, Any]) -> tuple[str, str]:
    return record["rule"], record["call"]


@contextmanager
def _telling(call: modal.FunctionCall) -> Iterator[None]:
    """The container's words as they come, to the last one when the call is over."""
    teller = threading.Thread(target=_tell, args=(call,), daemon=True)
    teller.start()
    try:
        yield
    finally:
        if not _leaving.is_set():
            teller.join(LAST_WORDS_SECONDS)


def _tell(call: modal.FunctionCall) -> None:
    try:
        for entry in call.logs.stream():
            for line in entry.message.splitlines():
                log.info("%s", line)
    except Exception as error:  # of the words only; what the call makes is waited for elsewhere
        if not _leaving.is_set():
            log.warning("the container's words cannot be followed any more (%s: %s)", type(error).__name__, error)


@contextmanager
def _detachable(rule: str, call: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM leave the call running and say so."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        log.warning(
            "%s: detached; call %s goes on. The same command attaches to it again; "
            "`python -m specforge.cloud cancel` ends it.", rule, call,
        )  # fmt: skip
        _leaving.set()
        raise Detached(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
