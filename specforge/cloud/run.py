"""The one call a rule's script makes: run a step here, or its Modal function where the configuration says."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import modal

from specforge.cloud.devices import leased
from specforge.cloud.job import Job
from specforge.cloud.mirror import read_receipt
from specforge.cloud.waiting import Detached
from specforge.errors import UserError
from specforge.log import log_to

log = logging.getLogger("specforge")


def run(job: Job, **request: Any) -> Any:
    """Runs the function of a job with `request` where the job says; returns what its step returns."""
    if job.place["backend"] == "modal":
        from specforge.cloud.remote import Remote

        return told(job.log, Remote(job, request).run)
    from specforge.cloud import app

    # modal warns that its volumes are not mounted here; local folders mirror them, which is the point
    warnings.filterwarnings("ignore", message=".*executing locally.*", module="modal")
    return told(job.log, _here, function=getattr(app, job.function), job=job, request=request)


def _here(function: modal.Function, job: Job, request: dict[str, Any]) -> Any:
    if absent := [path for path in job.inputs if read_receipt(path)]:
        raise UserError(
            f"{absent[0]} is a receipt: the file stayed on its Modal volume; bring it here with "
            f"`python -m specforge.cloud fetch {' '.join(absent)}`."
        )
    with leased(job.place["gpus"]):
        return function.local(**request)


def told(log_file: str, action: Callable[..., Any], **arguments: Any) -> Any:
    """Does `action` in this process; its words go to `log_file` and the terminal.

    A UserError becomes one sentence and exit status 1; anything else is a defect and keeps its traceback.
    """
    log_to(log_file)
    # read by libraries that the step imports after this: their bars would bury the lines that matter
    for switch in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(switch, "1")
    try:
        return action(**arguments)
    except UserError as error:
        log.error("Error: %s", error)
        sys.exit(1)
    except Detached as leaving:
        logging.shutdown()
        os._exit(leaving.code)  # the client would tell of its cut streams at length
    except Exception:
        log.exception("A defect of SpecForge, not of your input; the log is %s", log_file)
        raise
