"""Raw rows of any data set: the generator's, a file's, or the hub's, streamed, and which version they are."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from specforge.data import synthetic
from specforge.data.catalogue import SYNTHETIC, HubSource
from specforge.data.locate import locate
from specforge.data.raw_files import RawRow, array_rows, read_file, without_union
from specforge.errors import UserError

log = logging.getLogger("specforge")


class RawRows(NamedTuple):
    """Rows in the source's own order; `commit` is the hub's, where it could be had."""

    rows: Iterator[RawRow]
    needs_image: bool = False
    commit: str | None = None


def read_source(dataset: str, sample_size: int | None, seed: int, revision: str | None = None) -> RawRows:
    """Opens `dataset`; nothing but its version is asked of the hub until the first row is drawn.

    Rows are not bounded here: `sample_size` counts usable conversations, so the reader stops when it has
    the first `sample_size` of them. `seed` is the generator's, `revision` the hub's. Raises UserError.
    """
    place = locate(dataset, revision)
    if isinstance(place, HubSource):
        commit = _commit(place.repository, revision)
        return RawRows(_hub_rows(dataset, place, commit or revision), place.images, commit)
    if place == SYNTHETIC:
        if sample_size is None:
            raise UserError("dataset 'synthetic' has no end; set sample_size to the number of conversations to make.")
        return RawRows(RawRow(n, record) for n, record in enumerate(synthetic.generate(None, seed), 1))
    return RawRows(read_file(Path(place)))


def _commit(repository: str, revision: str | None) -> str | None:
    """The commit that `revision` (null: the newest) stands for, so that all rows are of one; None when offline."""
    from huggingface_hub import HfApi

    if _offline():
        log.warning("%s: offline, so the commit is not known; rows come from the local cache", repository)
        return None
    with _hub_failures(repository):
        return HfApi().dataset_info(repository, revision=revision).sha


def _hub_rows(dataset: str, source: HubSource, revision: str | None) -> Iterator[RawRow]:
    """Numbered rows of all subsets, each in one of the three forms."""
    log.info("reading %s at %s", source.repository, revision or "its newest revision")
    with _hub_failures(dataset):
        found = _array_of(source, revision) if source.file else _rows_of(source, revision)
        for number, row in enumerate(found, 1):
            value = source.row(row.value) if isinstance(row.value, dict) else row.value
            yield RawRow(number, value, row.error)


def _rows_of(source: HubSource, revision: str | None) -> Iterator[RawRow]:
    import datasets

    # Streaming never fills the cache and cannot read it; offline, a whole earlier download is the only way.
    how = {"split": source.split, "revision": revision, "streaming": not _offline()}
    parts = (datasets.load_dataset(source.repository, subset, **how) for subset in source.subsets)
    for number, row in enumerate(itertools.chain.from_iterable(parts), 1):
        yield RawRow(number, without_union(row))


def _array_of(source: HubSource, revision: str | None) -> Iterator[RawRow]:
    """The elements of a JSON array on the hub, downloaded in blocks as they are drawn."""
    from huggingface_hub import HfFileSystem, hf_hub_download

    name = f"datasets/{source.repository}/{source.file}"
    if _offline():
        path = hf_hub_download(source.repository, source.file, repo_type="dataset", revision=revision)
        file = Path(path).open("rb")  # noqa: SIM115
    else:
        file = HfFileSystem().open(name, "rb", revision=revision)
    with file:
        yield from array_rows(file, name)


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


@contextmanager
def _hub_failures(dataset: str) -> Iterator[None]:
    """The clients' failures share no base (OSError, ValueError, httpx errors), so all become one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"dataset {dataset!r} cannot be read from the hub ({reason}); check its name, dataset_revision, the "
            "network and HF_HUB_OFFLINE, or set dataset to a local file."
        ) from error
