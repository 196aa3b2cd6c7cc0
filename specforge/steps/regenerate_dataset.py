"""regenerate_dataset: every assistant turn said anew by the target, resumable, each conversation once."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from specforge.config.steps import Regenerate
from specforge.data.template import Chat
from specforge.errors import UserError
from specforge.files import digest, exclusive, publish, read_jsonl, sha256_file, write_json, write_jsonl
from specforge.journal import Journal
from specforge.progress import Progress
from specforge.regenerate.engine import Engine
from specforge.regenerate.http import HttpEngine
from specforge.regenerate.local import LocalEngine
from specforge.regenerate.servers import running_servers, sglang_command
from specforge.target.model import TargetFile

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
    after the second was changed. With `settings` False the conversations are copied as they are. Raises
    UserError when more than `max_failed_share` of them failed. The next run tries those again that failed
    on a server; the local engine would only fail again, so its failures stand in the journal.
    """
    ids = _identities(Path(source))
    if not settings:
        write_jsonl(Path(errors), ())
        return _write(read_jsonl(Path(source)), {}, False, Path(output), Path(summary))
    torch.set_num_threads(threads)
    recipe, model, chosen = Regenerate(**settings, **placement), TargetFile.read(target), Chat.of(chat, template)
    key = digest(settings, chosen.recipe(), code, sha256_file(Path(source)), model.sha256)
    with exclusive(Path(work) / key) as folder, Journal(folder / "journal.jsonl") as journal:
        allowed = recipe.max_failed_share * len(ids)
        transient = _fill(journal, ids, Path(source), _engine(recipe, model, folder, chosen), allowed)
        failed = _failed(journal, ids, transient)
        # Snakemake deletes the outputs of a rule that fails, and those are wanted just then.
        write_jsonl(folder / "errors.jsonl", ({"id": i, "error": cause} for i, cause in failed.items()))
        publish(folder / "errors.jsonl", Path(errors))
        if len(failed) > allowed:
            raise _too_many(failed, len(ids), recipe.max_failed_share, folder / "errors.jsonl")
        rows = (journal[identity] for identity in ids if identity not in failed)
        return _write(rows, failed, settings, Path(output), Path(summary))


def _identities(source: Path) -> list[str]:
    ids = [record["id"] for record in read_jsonl(source)]
    if not ids:
        raise UserError(f"{source} holds no conversations; check dataset and sample_size.")
    if len(set(ids)) < len(ids):
        twice = next(identity for identity, count in Counter(ids).items() if count > 1)
        raise UserError(f"{source} holds the id {twice!r} more than once; delete the file and run prep_dataset again.")
    return ids


def _fill(
    journal: Journal, ids: list[str], source: Path, engine: AbstractContextManager[Engine], allowed: float
) -> dict[str, str]:
    """Completes the journal; returns the causes of failures that may pass, which are not in it.

    Stops early once more than `allowed` have failed: the rest could not save the run.
    """
    transient: dict[str, str] = {}
    failures = sum("error" in row for row in journal)
    if failures > allowed or all(identity in journal for identity in ids):
        return transient
    progress = Progress("regenerate", len(ids), "conversations", done=len(journal))
    tokens, started = 0, time.monotonic()
    with engine as running, closing(running.run(read_jsonl(source), journal)) as rows:
        for row in rows:
            failures += "error" in row
            if "error" in row and not running.repeatable:
                transient[row["id"]] = row["error"]
            else:
                journal.append(row)
            tokens += row.get("tokens", 0)
            progress.advance(1, f"{tokens / max(time.monotonic() - started, 1e-9):.0f} tokens/s, {failures} failed")
            if failures > allowed:
                break
    return transient


@contextmanager
def _engine(recipe: Regenerate, target: TargetFile, folder: Path, chat: Chat) -> Iterator[Engine]:
    if recipe.engine == "transformers":
        yield LocalEngine.load(target, recipe, chat)
    elif recipe.engine == "endpoint":
        if chat.text is not None:
            log.warning("chat_template: the servers of endpoints render by their own; start them with %s", chat.name)
        yield HttpEngine(recipe.endpoints, target.model, recipe, api_key=os.environ.get("OPENAI_API_KEY"))
    else:
        command = sglang_command(target.model, target.revision, recipe.tp_size, chat.file(folder))
        with running_servers(
            command, count=recipe.num_servers, gpus_each=recipe.tp_size, logs=folder / "servers"
        ) as urls:
            yield HttpEngine(urls, target.model, recipe)


def _failed(journal: Journal, ids: Iterable[str], transient: dict[str, str]) -> dict[str, str]:
    """Cause by id, in input order."""
    causes = {row["id"]: row["error"] for row in journal if "error" in row} | transient
    return {identity: causes[identity] for identity in ids if identity in causes}


def _too_many(failed: dict[str, str], total: int, share: float, path: Path) -> UserError:
    identity, cause = next(iter(failed.items()))
    return UserError(
        f"{len(failed)} of {total} conversations failed, more than regenerate.max_failed_share ({share:g}), "
        f"so regeneration stopped; the first is {identity!r} ({cause}), all are in {path}."
    )


def _write(
    rows: Iterable[dict], failed: dict[str, str], settings: dict | bool, output: Path, summary: Path
) -> dict[str, Any]:
    """The output, then what is true of it; no times, so that equal runs give equal files."""
    turns, tokens, early, reasons = 0, 0, 0, Counter()

    def counted() -> Iterator[dict]:
        nonlocal turns, tokens, early
        for row in rows:
            answers = [turn for turn in row["conversations"] if turn["role"] == "assistant"]
            turns += len(answers)
            reasons.update(turn["finish_reason"] for turn in answers if settings)
            tokens += row.pop("tokens", 0) if settings else 0
            early += row.pop("ended_early", False) if settings else 0
            yield row

    written = write_jsonl(output, counted())
    content = {
        "conversations": written + len(failed),
        "regenerated": written if settings else 0,
        "failed": len(failed),
        "ended_early": early,
        "turns": turns,
        "tokens": tokens,
        "finish_reasons": dict(sorted(reasons.items())),
        "sha256": sha256_file(output),
        "settings": settings,
    }
    write_json(summary, content)
    return content
