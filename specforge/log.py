"""Where a step's words go: its rule's log file, whole, and one line now and then to the terminal."""

import logging
import sys
from pathlib import Path


def log_to(path: str | Path) -> None:
    """Appends the package's log to `path` and to standard error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger("specforge")
    root.setLevel(logging.INFO)
    root.handlers.clear()
    for handler, form in (
        (logging.FileHandler(path, "a"), "%(asctime)s %(levelname)s %(message)s"),
        (logging.StreamHandler(sys.stderr), "%(message)s"),
    ):
        handler.setFormatter(logging.Formatter(form))
        root.addHandler(handler)
