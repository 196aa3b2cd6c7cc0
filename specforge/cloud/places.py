"""Where things are on Modal: volumes, their mounts, and the one mapping between a path here and a path there."""

from pathlib import Path, PurePosixPath
from typing import NamedTuple

HOME = "/root/.cache/specforge"  # a container's working directory; `datasets/` and `checkpoints/` in it are mounts
HUB_CACHE, DATASETS, CHECKPOINTS = "specforge-hf-cache", "specforge-datasets", "specforge-checkpoints"
MOUNTS = {
    HUB_CACHE: "/root/.cache/huggingface",
    DATASETS: f"{HOME}/datasets",
    CHECKPOINTS: f"{HOME}/checkpoints",
}
STATE = Path(".specforge")  # of a workspace: ledger, digests, what is deployed


class Spot(NamedTuple):
    """A file on a volume."""

    volume: str
    path: str

    @property
    def mounted(self) -> str:
        """Where a container sees it."""
        return f"{MOUNTS[self.volume]}/{self.path}"

    @property
    def label(self) -> "Spot":
        """The small file beside the data that says which bytes a path holds."""
        return Spot(self.volume, f".digests/{self.path}.json")


def spot(path: str) -> Spot | None:
    """The place of a path that volumes mirror; None for a path outside them, such as the user's own data file."""
    first, _, rest = str(PurePosixPath(path)).partition("/")
    if not rest or ".." in PurePosixPath(path).parts:
        return None
    return {
        "datasets": Spot(DATASETS, rest),
        "checkpoints": Spot(CHECKPOINTS, rest),
        "results": Spot(CHECKPOINTS, f"results/{rest}"),
    }.get(first)


def guest(path: str, sha256: str) -> Spot:
    """The place of a file from outside, named by its content; a container finds it by a link at its own path."""
    return Spot(DATASETS, f"uploads/{sha256[:16]}/{PurePosixPath(path).name}")


def running(work: str) -> Spot:
    """Which call is at a piece of work, written by its container: found from any machine."""
    return Spot(DATASETS, f".running/{work}.json")


def finished(work: str) -> Spot:
    """The receipt of finished work, written by the container that did it."""
    return Spot(DATASETS, f".finished/{work}.json")
