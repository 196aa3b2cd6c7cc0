"""Files here and on the volumes: each goes up once, comes down whole and checked, or stays as a receipt."""

import hashlib
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import modal
from modal.exception import NotFoundError

from specforge.cloud.places import STATE, Spot, guest, spot
from specforge.errors import UserError
from specforge.files import atomic_path, digest, locked, publish, read_json, sha256_file, write_json
from specforge.progress import Progress

log = logging.getLogger("specforge")

ATTEMPTS = 3
MIB = 1 << 20
RECEIPT = "specforge_receipt"
RECEIPT_BYTES = 4096  # no receipt is longer


def read_receipt(path: str) -> dict[str, Any] | None:
    """The receipt that stands at `path` in place of a file that stayed on its volume; None for anything else."""
    file = Path(path)
    if not file.is_file() or file.stat().st_size > RECEIPT_BYTES:
        return None
    with suppress(ValueError):
        content = json.loads(file.read_bytes())
        return content if isinstance(content, dict) and RECEIPT in content else None
    return None


def is_weights(path: str) -> bool:
    """Whether `sync.checkpoints` decides about it."""
    return path.startswith("checkpoints/") and path.endswith(".safetensors")


class Mirror:
    """The volumes of one Modal environment beside the folders of this workspace."""

    def __init__(self, environment: str | None = None):
        self.environment = environment

    @cached_property
    def _handles(self) -> dict[str, modal.Volume]:
        return {}

    def _volume(self, name: str) -> modal.Volume:
        if name not in self._handles:
            self._handles[name] = modal.Volume.from_name(
                name, environment_name=self.environment, create_if_missing=True, version=2
            )
        return self._handles[name]

    # ---- up -----------------------------------------------------------------------------------------------------

    def bring(self, paths: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Has every input on its volume; returns their SHA-256 by path, and guests' mounted place by path.

        Raises UserError when a receipt's file is gone from its volume; the receipt goes too, so that it is made anew.
        """
        digests, guests = {}, {}
        for path in paths:
            receipt = read_receipt(path)
            sha256 = receipt["sha256"] if receipt else local_digest(path)
            place = spot(path) or guest(path, sha256)
            size = receipt["size"] if receipt else Path(path).stat().st_size
            with locked(STATE / "uploads" / digest(place)):  # twelve jobs have the same inputs
                if not self.holds(place, sha256, size):
                    if receipt:
                        raise gone([path])
                    self._put(path, place, sha256, size)
            digests[path] = sha256
            if not spot(path):
                guests[path] = place.mounted
        return digests, guests

    def holds(self, place: Spot, sha256: str, size: int) -> bool:
        """By its label and its size; a container that is given it looks at every byte."""
        label = self.read_json(place.label)
        return label is not None and label["sha256"] == sha256 and self.size(place) == size

    def size(self, place: Spot) -> int | None:
        try:
            entries = self._volume(place.volume).listdir(place.path)
        except (NotFoundError, FileNotFoundError):
            return None
        return next((entry.size for entry in entries if entry.path.strip("/") == place.path), None)

    def _put(self, path: str, place: Spot, sha256: str, size: int) -> None:
        if self.size(place) is not None:
            log.info("%s on the volume is not the one here; it is replaced", path)
        log.info("uploading %s (%.1f MiB) to volume %s", path, size / MIB, place.volume)
        label = json.dumps({"sha256": sha256, "size": size}).encode()
        with self._volume(place.volume).batch_upload(force=True) as batch:
            batch.put_file(path, f"/{place.path}")
        with self._volume(place.volume).batch_upload(force=True) as batch:
            batch.put_file(BytesIO(label), f"/{place.label.path}")

    def distrust(self, paths: Iterable[str]) -> None:
        """Forgets what labels say of these files: inputs go up again, outputs are made anew."""
        for path in paths:
            place = spot(path) or guest(path, local_digest(path))
            with suppress(NotFoundError, FileNotFoundError):
                self._volume(place.volume).remove_file(place.label.path)

    # ---- down ---------------------------------------------------------------------------------------------------

    def read_json(self, place: Spot) -> Any | None:
        """A small JSON file of a volume, or None when it is not there or not whole."""
        try:
            return json.loads(b"".join(self._volume(place.volume).read_file(place.path)))
        except (NotFoundError, FileNotFoundError, ValueError):
            return None

    def unlabelled(self, place: Spot) -> dict[str, Any]:
        """Size and digest of a file that no finished step left, read whole. Raises UserError when there is none."""
        size, total = self.size(place), hashlib.sha256()
        if size is None:
            raise UserError(f"{place.path} is not on volume {place.volume}.")
        for chunk in self._volume(place.volume).read_file(place.path):
            total.update(chunk)
        return {"sha256": total.hexdigest(), "size": size}

    def missing(self, files: dict[str, dict[str, Any]]) -> list[str]:
        """Which of these outputs their volumes do not hold as they were made."""
        return [path for path, facts in files.items() if not self.holds(spot(path), facts["sha256"], facts["size"])]

    def collect(self, files: dict[str, dict[str, Any]], checkpoints: str) -> None:
        """Brings outputs down, or a receipt for the weights that stay."""
        for path, facts in files.items():
            if checkpoints == "none" and is_weights(path):
                place = spot(path)
                write_json(Path(path), {RECEIPT: 1, "volume": place.volume, "path": place.path, **facts})
            else:
                self.fetch(path, facts)

    def fetch(self, path: str, facts: dict[str, Any]) -> None:
        """One file, streamed, checked by its digest and renamed into place. Raises UserError after three bad copies."""
        with locked(STATE / "downloads" / f"{digest(path)}.lock"):  # two jobs may collect one call
            if not (Path(path).is_file() and local_digest(path) == facts["sha256"]):
                self._fetch(path, spot(path), facts)

    def _fetch(self, path: str, place: Spot, facts: dict[str, Any]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._copy(place, Path(path), facts):
                    return
            except (NotFoundError, FileNotFoundError):
                raise UserError(f"{path} is gone from volume {place.volume}; type the same command again.") from None
            log.warning("%s came down damaged (attempt %d of %d)", path, attempt, ATTEMPTS)
        self.distrust([path])
        raise UserError(
            f"{path} came down damaged {ATTEMPTS} times, or changed on volume {place.volume} after it was made; "
            "type the same command again."
        )

    def _copy(self, place: Spot, path: Path, facts: dict[str, Any]) -> bool:
        """Whether the bytes that came were the right ones; only then are they at `path`."""
        progress = Progress(f"downloading {path}", max(1, facts["size"] // MIB), "MiB")
        total, seen = hashlib.sha256(), 0
        aside = STATE / "downloads" / digest(str(path), facts["sha256"])
        with atomic_path(aside) as partial, partial.open("wb") as file:
            for chunk in self._volume(place.volume).read_file(place.path):
                file.write(chunk)
                total.update(chunk)
                seen += len(chunk)
                if seen // MIB > progress.done:
                    progress.advance(seen // MIB - progress.done)
        whole = total.hexdigest() == facts["sha256"]
        if whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            publish(aside, path)
            _remember(str(path), facts["sha256"])
        aside.unlink(missing_ok=True)
        return whole


def gone(paths: list[str]) -> UserError:
    """Removes the receipts of files that are no longer on their volume; the sentence that says so."""
    for path in paths:
        Path(path).unlink(missing_ok=True)
    return UserError(
        f"{', '.join(paths)}: the volume no longer holds what the receipt says; the receipt is removed, so the same "
        "command makes it anew."
    )


def drifted(paths: Iterable[str], mirror: Mirror) -> list[str]:
    """Receipts among `paths` whose files are gone from their volume, or are others."""
    receipts = {path: receipt for path in paths if (receipt := read_receipt(path))}
    return mirror.missing(receipts)


def local_digest(path: str) -> str:
    """SHA-256 of a file here; read again only when its size or date changed."""
    stat = Path(path).stat()
    note = _note(path)
    known = read_json(note) if note.is_file() else {}
    if (known.get("size"), known.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns):
        return known["sha256"]
    return _remember(path, sha256_file(Path(path)))


def _remember(path: str, sha256: str) -> str:
    stat = Path(path).stat()
    write_json(_note(path), {"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256})
    return sha256


def _note(path: str) -> Path:
    return STATE / "digests" / f"{digest(path)}.json"
