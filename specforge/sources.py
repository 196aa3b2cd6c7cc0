"""The raw data set as a rule's input: which file it is and what it holds."""

from pathlib import Path

from specforge.files import sha256_file


def source_input(dataset: str) -> list[str]:
    """The file that `dataset` names, as a list of one; empty for generated and hub data."""
    return [dataset] if Path(dataset).is_file() else []


def source_version(dataset: str) -> str:
    """Digest of the file's content, so that its date does not matter; the name itself for other data."""
    return sha256_file(Path(dataset)) if Path(dataset).is_file() else dataset
