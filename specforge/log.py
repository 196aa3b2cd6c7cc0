"""Where a step's words go: its rule's log file, whole, and one line now and then to the terminal."""

import logging
import sys
from pathlib import Path


def log_to(path: str | Path | None) -> None:
    """Sends the package's log to standard error, and appends it to `path` if there is one."""
    root = logging.getLogger("specforge")
    root.setLevel(logging.INFO)
    root.handlers.clear()
    handlers = [(logging.StreamHandler(sys.stderr), "%(message)s")]
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handlers.append((logging.FileHandler(path, "a"), "%(asctime)s %(levelname)s %(message)s"))
    for handler, form in handlers:
        handler.setFormatter(logging.Formatter(form))
        root.addHandler(handler)
