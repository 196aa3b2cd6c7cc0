"""What `dataset` of the configuration names: a generator, a file, or a data set of the hub. Reads no data."""

import dataclasses
import difflib
import os
import re
from pathlib import Path

from specforge.data.catalogue import NAMES, SOURCES, SYNTHETIC, HubSource
from specforge.data.raw_files import SUFFIXES
from specforge.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FORMATS = "a .json, .jsonl or .parquet file"


def locate(dataset: str, revision: str | None = None) -> str | Path | HubSource:
    """SYNTHETIC, the path of an existing file, or a source of the hub narrowed to the subset that is named.

    A source's name may be followed by `:subset`, a hub id by `:subset` or `:subset:split`, where the subset may be
    empty. Raises UserError, with near misses, for all else, and for a revision of what has none.
    """
    place = _locate(dataset)
    if revision is not None and not isinstance(place, HubSource):
        raise UserError(f"dataset_revision is {revision!r}, but {dataset} is not of the hub; set it to null.")
    return place


def _locate(dataset: str) -> str | Path | HubSource:
    if dataset == SYNTHETIC:
        return SYNTHETIC
    name, *parts = dataset.split(":")
    if name in SOURCES:
        return _subset(name, parts)
    path = Path(dataset)
    if path.is_file():
        return _checked_file(path)
    if path.is_dir():
        raise UserError(f"dataset {dataset} is a folder; name one file in it, {FORMATS}.")
    if _may_be_on_the_hub(name) and len(parts) <= 2:
        subset, split = (*parts, "", "")[:2]
        return HubSource(name, subsets=(subset or None,), split=split or "train")
    raise _unknown(dataset)


def source_name(dataset: str) -> str:
    """One spelling of `dataset`: of a file its path, from the working folder when it lies there; else as it is."""
    if isinstance(locate(dataset), Path):
        path, here = Path(os.path.abspath(dataset)), Path.cwd()  # noqa: PTH100  (it alone drops "..")
        return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.as_posix()
    return dataset


def _subset(name: str, parts: list[str]) -> HubSource:
    source = SOURCES[name]
    if not parts:
        return source
    wanted = ":".join(parts)
    if wanted not in source.subsets:
        known = ", ".join(f"{name}:{subset}" for subset in source.subsets if subset)
        raise UserError(f"dataset {name}:{wanted}: {name} has no such subset; write {name}{known and f', or {known}'}.")
    return dataclasses.replace(source, subsets=(wanted,))


def _checked_file(path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        raise UserError(f"dataset {path} must be {FORMATS}; convert it or rename it.")
    return path


def _may_be_on_the_hub(name: str) -> bool:
    """OWNER/NAME, unless it is rather the path of a file that is missing."""
    return bool(HUB_ID.fullmatch(name)) and not name.endswith(SUFFIXES) and not Path(name).parent.is_dir()


def _unknown(dataset: str) -> UserError:
    folder = Path(dataset).parent
    files = [str(path) for path in folder.iterdir() if path.suffix in SUFFIXES] if folder.is_dir() else []
    near = difflib.get_close_matches(dataset, [*NAMES, *files], n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(
        f"dataset {dataset!r} is no file and no known data set; set it to the path of {FORMATS}, "
        f"to a hub id OWNER/NAME, or to one of {', '.join(NAMES)}.{hint}"
    )
