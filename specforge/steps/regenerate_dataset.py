"""regenerate_dataset: every assistant turn said anew by the target, resumable, each conversation once."""

import logging
from pathlib import Path
from typing import Any

from specforge.data.template import Chat
from specforge.errors import UserError
from specforge.files import exclusive
from specforge.regenerate.blocks import Source
from specforge.regenerate.engine import UNKNOWN
from specforge.regenerate.fill import state
from specforge.regenerate.job import Job
from specforge.regenerate.result import write_copy, write_result

log = logging.getLogger("specforge")


def regenerate_dataset(
    *,
    source: str,
    target: str,
    settings: dict[str, Any] | bool,
    placement: dict[str, Any] | bool,
    code: str,
    output: str,
    errors: str,
    summary: str,
    work: str,
    threads: int,
    chat: dict[str, Any] | None = None,
    template: str | None = None,
) -> dict[str, Any]:
    """Writes the regenerated conversations in input order, those that failed, and a summary; returns it.

    `target` is a target.json; `settings` and `placement` are the two halves of Regenerate, and a run continues
    after the second was changed. With several shards regenerate_shard has said all, and this only joins it. With
    `settings` False the conversations are copied as they are. Raises UserError when more than `max_failed_share` of
    them failed, or a shard is not finished. The next run tries those again that failed on a server; what
    the local engine fails at or a server refuses would only fail again, and stands in the journal.
    """
    files = Path(output), Path(errors), Path(summary)
    if not settings:
        whole = Source(Path(source))
        return write_copy((row for block in range(len(whole)) for row in whole.records(block)), *files)
    job = Job.of(source, target, settings, placement, Chat.of(chat, template), code, work, threads)
    blocks = range(len(job.source))
    with exclusive(job.folder):
        if job.recipe.shards == 1:
            failed = job.say(blocks, job.folder, "regenerate")
        else:
            failed = _joined(job, blocks)
        job.check(blocks, failed, job.folder, Path(errors))
        told = write_result(job.work, settings, *files, job.again)
        if unknown := told["finish_reasons"].get(UNKNOWN):
            log.warning("%d answers came without a finish reason; no end token is learnt from those", unknown)
        if told["failed"] and (passing := state(job.work, blocks).passing):
            log.warning(
                "%d of %d conversations failed for now and are left out; ask for them again with: %s "
                "(and the --config or --configfile of this run)",
                passing,
                job.source.total,
                job.again,
            )
        return told


def _joined(job: Job, blocks: range) -> int:
    """How many failed. Raises UserError where a shard left conversations that neither were said nor failed."""
    said = state(job.work, blocks)
    missing = job.source.total - said.done - said.passing
    if missing:
        raise UserError(
            f"{missing} of {job.source.total} conversations are not regenerated yet; "
            f"run the rule regenerate_shard for each shard first: {job.again}"
        )
    return said.failed + said.passing
