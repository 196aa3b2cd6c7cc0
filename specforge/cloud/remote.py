"""One job on Modal: found running or finished, or started; waited for; its outputs brought home."""

import logging
import re
import time
from dataclasses import dataclass
from typing import Any

import modal
from modal import exception as raised

from specforge.cloud import ledger
from specforge.cloud.deploy import ensure_deployed
from specforge.cloud.errors import PASSING, explain
from specforge.cloud.job import Job
from specforge.cloud.mirror import Mirror, gone, read_receipt
from specforge.cloud.places import finished, running
from specforge.cloud.plan import remember
from specforge.cloud.waiting import detachable, telling, undisturbed
from specforge.errors import UserError
from specforge.files import digest
from specforge.fingerprint import step_version
from specforge.provenance import commit

log = logging.getLogger("specforge")

WAIT_SECONDS = 60.0  # of one question whether a call is over
PATIENCE_SECONDS = 1800.0  # without any answer from Modal, before a waiting job gives up and leaves the call running
OVER = (raised.OutputExpiredError, raised.FunctionTimeoutError)  # timeouts of a call, not of a question
RESTARTS = 3  # of a call whose inputs changed under it


@dataclass
class Remote:
    """A job of a rule, and `request`, what its step takes."""

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
                answer = self._answer(self.job.work(self.request, inputs), inputs, guests)
                if answer.get("stale"):
                    log.warning("%s: the app held other code, deployed from elsewhere; deployed anew", self.job.rule)
                    ensure_deployed(self.place, anew=True)
                elif drift := answer.get("drift"):
                    self._mend(drift)
                else:
                    return self._receive(answer)
        except (raised.Error, *PASSING, OSError) as error:
            raise explain(error, self.job.rule) from error
        raise UserError(
            f"{self.job.rule}: its inputs on the volume, or the app, changed {RESTARTS} times while it started; who "
            "else works in this environment? Give each workspace an environment of its own (modal.environment)."
        )

    # ---- starting ------------------------------------------------------------------------------------------------

    def _key(self, work: str) -> str:
        """Of the ledger: the same work in another environment is another call."""
        return digest(self.place["app"], self.place["environment"], work)

    def _answer(self, work: str, inputs: dict[str, str], guests: dict[str, str]) -> dict[str, Any]:
        key = self._key(work)
        with ledger.held(key):
            self._supersede(key)
            done = self._done(work)
            if done:
                return done
            call = self._running(work) or self._start(work, inputs, guests)
        try:
            answer = self._wait(call)
        except UserError:  # it failed, which is told here and now
            with ledger.held(key):
                ledger.drop(key, call.object_id)
            raise
        with ledger.held(key):
            ledger.drop(key, call.object_id)
        return answer

    def _done(self, work: str) -> dict[str, Any] | None:
        """The answer of an earlier call of this very work, when the volumes still hold what it made."""
        if self.job.rule == "download_model":  # asks the hub for the newest revision each time, and is cheap
            return None
        answer = self.mirror.read_json(finished(work))
        if answer is None:
            return None
        if missing := self.mirror.missing(answer["files"]):
            log.warning("made before, but gone from the volume or changed there, so made anew: %s", ", ".join(missing))
            return None
        record = ledger.find(self._key(work))
        if record:
            log.info("%s: call %s is over", self.job.rule, record["call"])
            ledger.drop(record["key"], record["call"])
        else:
            log.info("%s: the volume holds the results of this very work", self.job.rule)
        return answer

    def _running(self, work: str) -> modal.FunctionCall | None:
        """A call of this work that runs or has an answer to collect, from whichever terminal or machine.

        One that failed is told of and forgotten, so that it starts anew.
        """
        noted = ledger.find(self._key(work)) or self.mirror.read_json(running(work))
        if noted is None:
            return None
        call = modal.FunctionCall.from_id(noted["call"])
        over = self._why_over(call)
        if over is None:
            return call
        log.warning("%s: call %s is over (%s); starting anew", self.job.rule, noted["call"], over)
        ledger.drop(self._key(work), noted["call"])
        return None

    def _why_over(self, call: modal.FunctionCall) -> str | None:
        """Why there is nothing to wait for or to collect from a call; None where there is."""
        try:
            answer = call.get(timeout=0)
        except PASSING:
            raise
        except Exception as error:
            if isinstance(error, (TimeoutError, raised.TimeoutError)) and not isinstance(error, OVER):
                log.info("%s: attached to call %s, which is running", self.job.rule, call.object_id)
                return None
            return str(explain(error, "it failed"))
        if failed := answer.get("error") or answer.get("traceback"):
            return f"it failed: {failed}"
        if "files" not in answer:
            return "its inputs were others"
        return "the volume no longer holds what it made" if self.mirror.missing(answer["files"]) else None

    def _start(self, work: str, inputs: dict[str, str], guests: dict[str, str]) -> modal.FunctionCall:
        order = {
            "work": work, "rule": self.job.rule, "step": step_version(self.job.rule), "commit": commit(),
            "inputs": inputs, "guests": guests, "outputs": list(self.job.outputs),
        }  # fmt: skip
        with undisturbed():  # a call that is started is written down
            call = self._spawn(order)
            ledger.note(
                self._key(work), call.object_id, rule=self.job.rule, function=self.job.function, params=self.job.params,
                experiment=self.place["experiment"], outputs=list(self.job.outputs), log=self.job.log,
                gpus=self.place["gpus"], environment=self.place["environment"], app=self.place["app"],
            )  # fmt: skip
        log.info("%s: started as call %s on %s", self.job.rule, call.object_id, self.place["gpus"] or "CPUs")
        return call

    def _spawn(self, order: dict[str, Any]) -> modal.FunctionCall:
        try:
            return self._function().spawn(order=order, **self.request)
        except raised.NotFoundError as error:
            if "Secret" in str(error):
                raise
            ensure_deployed(self.place, anew=True)  # stopped or deleted since
            return self._function().spawn(order=order, **self.request)

    def _function(self) -> modal.Function:
        place = self.place
        options: dict[str, Any] = {
            "timeout": int(place["timeout_hours"] * 3600),
            "retries": modal.Retries(max_retries=place["retries"], initial_delay=1.0),
        }
        options |= {"gpu": place["gpus"]} if place["gpus"] else {}
        options |= {name: place[name] for name in ("cpu", "memory") if place[name]}
        if (self.request.get("wandb") or {}).get("project"):
            names = ("huggingface-secret", "wandb-secret")
            options["secrets"] = [modal.Secret.from_name(n, environment_name=place["environment"]) for n in names]
        function = modal.Function.from_name(place["app"], self.job.function, environment_name=place["environment"])
        return function.with_options(**options)

    def _supersede(self, key: str) -> None:
        """Ends calls that would write over this work's outputs: the same job before an edit."""
        here = (self.place["app"], self.place["environment"])
        for record in ledger.entries():
            same_place = (record["app"], record["environment"]) == here
            if record["key"] != key and same_place and set(self.job.outputs) & set(record["outputs"]):
                log.warning("%s: call %s made the same files from older settings or code; cancelled", *_who(record))
                cancel(record)

    # ---- waiting -------------------------------------------------------------------------------------------------

    def _wait(self, call: modal.FunctionCall) -> dict[str, Any]:
        silent_since = None
        with detachable(self.job.rule, call.object_id), telling(call):
            while True:
                try:
                    return call.get(timeout=WAIT_SECONDS)
                except raised.OutputExpiredError:
                    raise
                except raised.FunctionTimeoutError as error:
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
                    raise explain(error, f"{self.job.rule}, call {call.object_id}") from error

    # ---- receiving -----------------------------------------------------------------------------------------------

    def _receive(self, answer: dict[str, Any]) -> Any:
        if error := answer.get("error"):
            there = " (files that it names are on the volume: python -m specforge.cloud fetch PATH)"
            raise UserError(error + (there if re.search(r"(datasets|checkpoints|results)/", error) else ""))
        if trace := answer.get("traceback"):
            raise RuntimeError(f"{self.job.rule} failed on Modal:\n{trace}")
        self.mirror.collect(answer["files"], self.place["sync"]["checkpoints"])
        if "result" in answer:
            remember(self.job.rule, self.place["gpus"], answer["seconds"])
        return answer.get("result")

    def _mend(self, drift: list[str]) -> None:
        """Has inputs that the container found wrong uploaded again; a receipt has nothing to upload."""
        if lost := [path for path in drift if read_receipt(path)]:
            self.mirror.distrust(lost)
            raise gone(lost)
        log.warning("%s: changed or gone on the volume; uploaded again", ", ".join(drift))
        self.mirror.distrust(drift)


def cancel(record: dict[str, Any]) -> None:
    """Ends a call and its container; one that is over or unknown is only forgotten."""
    try:
        modal.FunctionCall.from_id(record["call"]).cancel(terminate_containers=True)
    except raised.NotFoundError:
        log.info("%s: call %s is unknown to Modal by now", *_who(record))
    ledger.drop(record["key"], record["call"])


def _who(record: dict[str, Any]) -> tuple[str, str]:
    return record["rule"], record["call"]
