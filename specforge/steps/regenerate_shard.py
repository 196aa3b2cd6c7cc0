"""regenerate_shard: one of several independent pieces of a regeneration; regenerate_dataset joins them."""

import logging
from pathlib import Path
from typing import Any

from specforge.data.template import Chat
from specforge.files import exclusive, write_json
from specforge.regenerate.blocks import BLOCK
from specforge.regenerate.job import Job

log = logging.getLogger("specforge")


def regenerate_shard(
    *,
    source: str,
    target: str,
    settings: dict[str, Any],
    placement: dict[str, Any],
    chat: dict[str, Any] | None = None,
    template: str | None = None,
    code: str,
    shard: int,
    receipt: str,
    work: str,
    threads: int,
) -> dict[str, Any]:
    """Says what is missing of shard `shard`, from 0, of as many as `placement` says; returns the receipt it writes.

    The other arguments are those of regenerate_dataset, `code` included: both must find the same work folder. What
    another number of shards, or none, said before counts. Raises UserError when more than `max_failed_share` of the
    shard's conversations failed.
    """
    job = Job.of(source, target, settings, placement, Chat.of(chat, template), code, work, threads)
    count = job.recipe.shards
    if not 0 <= shard < count:
        raise ValueError(f"there is no shard {shard} of {count}")
    blocks = job.source.shard(shard, count)
    if not blocks:
        log.warning(
            "shard %d of %d has nothing to do: %d conversations are %d blocks of %d, and no block is divided; "
            "set regenerate.shards to %d",
            shard, count, job.source.total, len(job.source), BLOCK, len(job.source),
        )  # fmt: skip
    with exclusive(job.folder / f"shard-{shard}-of-{count}") as place:
        failed = job.say(blocks, place, f"regenerate {shard + 1}/{count}")
        job.check(blocks, failed, place)
    told = {
        "shard": shard,
        "shards": count,
        "blocks": [blocks.start, blocks.stop],
        "conversations": job.source.size(blocks),
        "failed": failed,
    }
    write_json(Path(receipt), told)
    return told
