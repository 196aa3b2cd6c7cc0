"""The one call a rule's script makes: run a step here, or its Modal function where the configuration says."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import modal

from specforge.errors import UserError
from specforge.log import log_to

log = logging.getLogger("specforge")


def run(function: modal.Function, *, backend: str, log_file: str, **request: Any) -> Any:
    """Runs a Modal function with `request` on `backend` and returns what it returns."""
    if backend != "local":
        raise ValueError(f"backend {backend!r} has no runner")
    # modal warns that its volumes are not mounted here; local folders mirror them, which is the point
    warnings.filterwarnings("ignore", message=".*executing locally.*", module="modal")
    return run_here(function.local, log_file=log_file, **request)


def run_here(step: Callable[..., Any], *, log_file: str, **request: Any) -> Any:
    """Runs `step` in this process; its words go to `log_file` and the terminal.

    A UserError becomes one sentence and exit status 1; anything else is a defect and keeps its traceback.
    """
    log_to(log_file)
    # read by libraries that the step imports after this: their bars would bury the lines that matter
    for switch in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(switch, "1")
    try:
        return step(**request)
    except UserError as error:
        log.error("Error: %s", error)
        sys.exit(1)
    except Exception:
        log.exception("A defect of SpecForge, not of your input; the log is %s", log_file)
        raise
