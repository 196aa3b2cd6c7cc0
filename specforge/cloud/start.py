"""Before the first job of a run on Modal: receipts that lie, and the budget."""

from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from specforge.cloud.live import is_live
from specforge.cloud.plan import check_budget, plan, table
from specforge.config.schema import Config
from specforge.errors import UserError


def before_start(workflow: Any, cfg: Config) -> None:
    """Raises WorkflowError, before anything that costs is started, in the words of what is wrong."""
    if cfg.backend != "modal" or workflow.touch:
        return
    try:
        lines = plan(cfg, workflow.dag.needrun_jobs(), is_live)
        logger.info(table(lines))
        check_budget(cfg, lines)
        _check_receipts(workflow, cfg)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def _check_receipts(workflow: Any, cfg: Config) -> None:
    from specforge.cloud.errors import explain
    from specforge.cloud.mirror import Mirror, drifted, gone

    outputs = [str(path) for job in workflow.dag.jobs for path in job.output]
    try:
        lost = drifted(outputs, Mirror(cfg.modal.environment))
    except Exception as error:
        raise explain(error, "looking at the volumes") from error
    if lost:
        raise gone(lost)
