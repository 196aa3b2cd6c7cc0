"""The raw data set as planning sees it: which file it is, what it holds, and whether its name is free."""

from pathlib import Path

from specforge.data.locate import locate, source_name
from specforge.errors import UserError
from specforge.files import read_json, sha256_file


def check_source(dataset: str, revision: str | None, summary: str) -> None:
    """Raises UserError for a data set that is not there, and for one whose name another has taken.

    Data sets are named by file, without folder, so that their results have short paths; `summary` is where
    prep_dataset noted which source the data set of this name came from.
    """
    locate(dataset, revision)
    if not Path(summary).is_file():
        return
    source, made_from = source_name(dataset), read_json(Path(summary)).get("source")
    if made_from not in {None, source}:
        raise UserError(
            f"dataset {source} would take the place of {made_from}, whose data set has the same name ({summary}); "
            f"rename the file, or delete {summary} to replace that data set."
        )


def source_input(dataset: str) -> list[str]:
    """The file that `dataset` names, as a list of one; empty for generated and hub data."""
    return [dataset] if isinstance(locate(dataset), Path) else []


def source_version(dataset: str) -> str:
    """Digest of the file's content, so that its date does not matter; the name itself for other data."""
    return sha256_file(Path(dataset)) if isinstance(locate(dataset), Path) else dataset
