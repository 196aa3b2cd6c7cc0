"""The container's side of a call: inputs checked, the step run, progress committed, outputs labelled and committed."""

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import modal

from specforge.cloud.places import CHECKPOINTS, DATASETS, HOME, HUB_CACHE, MOUNTS, finished, running, spot
from specforge.errors import UserError
from specforge.files import sha256_file, write_json
from specforge.fingerprint import step_version
from specforge.log import log_to

log = logging.getLogger("specforge")

LOOK_SECONDS = 1.0
JOURNAL_SECONDS = 10.0  # between commits of files that only grow; a new checkpoint is committed at once

Volumes = Mapping[str, modal.Volume]


@dataclass(frozen=True)
class Order:
    """What a call's sender expects. The defaults are those of a call that no rule sent."""

    work: str | None = None
    rule: str | None = None
    step: str | None = None  # version of the rule's step at the sender
    commit: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)  # path to SHA-256
    outputs: list[str] = field(default_factory=list)
    guests: dict[str, str] = field(default_factory=dict)  # a path outside the volumes to where it is mounted


def carry_out(step: Callable[..., Any], request: dict[str, Any], order: dict[str, Any] | None, volumes: Volumes) -> Any:
    """Runs `step` here and now. In a container the answer is a dict with one of these keys:

    `files`: the outputs by path, each with `sha256` and `size`; `error`: a sentence for the user; `traceback`: of a
    defect; `drift`: inputs whose bytes are not the ordered ones; `stale`: the app holds another version of the step.
    None of them is raised: Modal would run it all again.
    """
    if modal.is_local():
        return step(**request)
    try:
        return _outcome(step, request, Order(**(order or {})), volumes)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which not every image has
            return {"error": f"the GPU ran out of memory ({error}); lower train.micro_tokens or choose another `gpu`."}
        return {"traceback": traceback.format_exc()}


def _outcome(step: Callable[..., Any], request: dict[str, Any], told: Order, volumes: Volumes) -> dict[str, Any]:
    _settle_in(told, volumes)
    if told.step and told.step != step_version(told.rule):
        return {"stale": True}
    drift = [path for path, sha256 in told.inputs.items() if not _is(Path(path), sha256)]
    if drift:
        return {"drift": drift}
    started = time.monotonic()
    try:
        with committing(Path(request["work"]) if "work" in request else None, volumes):
            result = step(**request)
    except UserError as error:
        _commit(volumes)  # what it made so far, and the files that its sentence names
        return {"error": str(error)}
    answer = {"files": _label(told.outputs), "seconds": round(time.monotonic() - started, 1), "result": result}
    _commit(volumes)
    if told.work:  # only now: what it names is there for everyone
        write_json(Path(finished(told.work).mounted), {"files": answer["files"], "seconds": answer["seconds"]})
        commit(volumes[DATASETS])
    return answer


def _settle_in(order: Order, volumes: Volumes) -> None:
    os.chdir(HOME)
    log_to(None)
    for volume in volumes.values():
        volume.reload()
    results = Path(MOUNTS[CHECKPOINTS], "results")
    results.mkdir(exist_ok=True)
    for link, target in {"results": str(results), **order.guests}.items():
        if not os.path.lexists(link):
            Path(link).parent.mkdir(parents=True, exist_ok=True)
            Path(link).symlink_to(target)
    if order.commit:
        os.environ["SPECFORGE_COMMIT"] = order.commit
    if order.work:
        write_json(Path(running(order.work).mounted), {"call": modal.current_function_call_id()})
        commit(volumes[DATASETS])


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256


def _label(outputs: list[str]) -> dict[str, dict[str, Any]]:
    """Writes beside each output which bytes it holds."""
    files = {}
    for path in outputs:
        files[path] = {"sha256": sha256_file(Path(path)), "size": Path(path).stat().st_size}
        write_json(Path(spot(path).label.mounted), files[path])
    return files


def commit(volume: modal.Volume) -> None:
    """Makes what is on a volume durable. Modal then also reloads it, which open files forbid; that is no harm here."""
    try:
        volume.commit()
    except RuntimeError as error:
        if "open files" not in str(error):
            raise


def _commit(volumes: Volumes) -> None:
    """Results first; the hub's cache only saves a download."""
    commit(volumes[CHECKPOINTS])
    commit(volumes[DATASETS])
    try:
        commit(volumes[HUB_CACHE])
    except Exception as error:
        log.warning("the hub's cache could not be committed (%s: %s)", type(error).__name__, error)


@contextmanager
def committing(work: Path | None, volumes: Volumes) -> Iterator[None]:
    """Commits what appears in a work folder while the block runs, so that a lost container costs a save at most."""
    if work is None:
        yield
        return
    place = spot(str(work))
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(work, volumes[place.volume], over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _watch(work: Path, volume: modal.Volume, over: threading.Event) -> None:
    saved, seen, last = set(), None, time.monotonic()
    while not over.wait(LOOK_SECONDS):
        files = _files(work)
        states = {name for name, _ in files if name.endswith(".safetensors")}
        due = time.monotonic() - last >= JOURNAL_SECONDS
        if states != saved or (files != seen and due):
            try:
                commit(volume)
            except Exception as error:  # the step goes on; the next look tries again
                log.warning("progress could not be committed (%s: %s)", type(error).__name__, error)
                continue
            saved, seen, last = states, files, time.monotonic()


def _files(work: Path) -> set[tuple[str, int]]:
    """Names and sizes; a file that vanishes while it is looked at is left out."""
    found = set()
    for path in work.rglob("*"):
        try:
            found.add((str(path), path.stat().st_size))
        except FileNotFoundError:
            continue
    return found
