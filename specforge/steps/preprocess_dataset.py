"""Tokenize the conversations into an Arrow cache and choose the draft vocabulary."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from specforge.config.steps import Preprocess
from specforge.data.cache import write_cache
from specforge.data.chunks import tokenize
from specforge.data.tally import Tally, check
from specforge.data.template import Chat, template_facts
from specforge.data.tokenizing import Recipe, Tokenizing
from specforge.data.vocab import coverage, draft_vocabulary
from specforge.errors import UserError
from specforge.files import read_jsonl, sha256_file, write_json
from specforge.model.vocab import save_vocab
from specforge.progress import Progress
from specforge.target.file import TargetFile

log = logging.getLogger("specforge")

WORTH_A_PROCESS = 8 * 2**20  # bytes of conversations; a process takes a second to start


def preprocess_dataset(
    *,
    source: str,
    target: str,
    settings: dict[str, Any],
    max_length: int,
    cache: str,
    vocab: str,
    summary: str,
    chat: dict[str, Any] | None = None,
    template: str | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Writes the cache (id, input_ids, loss_mask), d2t and t2d, and the summary that holds their digests.

    `chat` and `template` are a Chat's recipe and text. Up to `threads` processes work, with the same result. Raises
    UserError when a gate of the settings fails: too few supervised tokens, too little coverage, too much cut.
    """
    options, model = Preprocess(**settings), TargetFile.read(target)
    chosen_chat, ends = Chat.of(chat, template), tuple(model.end_ids())
    work = Tokenizing(Recipe(model, max_length, chosen_chat, ends, options.train_on_reasoning))
    tokenizer = work.encoder.tokenizer
    facts = template_facts(tokenizer, chosen_chat)
    if facts["dated"]:
        log.warning("the chat template writes today's date, so another day gives other tokens; fix it if it takes one")
    tally = Tally()
    processes = min(threads, 1 + _size(Path(source)) // WORTH_A_PROCESS)
    write_cache(Path(cache), _batches(Path(source), work, processes, tally))
    always = {*_special(tokenizer), *work.encoder.end_ids, *tally.ends}
    vocab_size = model.config().get_text_config().vocab_size
    chosen = _vocabulary(tally, always, options, vocab_size, Path(vocab))
    report = {
        **_counts(tally),
        **chosen,
        "chat_template": facts["name"],
        "template": facts,
        "end_tokens": tokenizer.convert_ids_to_tokens(sorted(tally.ends)),
        "max_length": max_length,
        "preview": _preview(tokenizer, tally.preview),
        "sha256": {"cache": sha256_file(Path(cache)), "vocab": sha256_file(Path(vocab))},
    }
    write_json(Path(summary), report)
    log.info(
        "cache: %(sequences)d sequences, %(tokens)d tokens, %(supervised_tokens)d supervised, %(truncated)d truncated, "
        "%(empty)d without supervised tokens; %(refused)d conversations refused, %(nothing_learnt)d with "
        "nothing to learn; coverage %(coverage).4f",
        report,
    )
    return report


def _vocabulary(tally: Tally, always: set[int], options: Preprocess, vocab_size: int, path: Path) -> dict[str, Any]:
    """Chooses and writes the draft vocabulary of data that pass the gate; its part of the summary."""
    chosen = draft_vocabulary(tally.supervised, always, options.draft_vocab_size, vocab_size)
    covered = coverage(tally.supervised, chosen)
    check(tally, covered, options)
    save_vocab(path, chosen, vocab_size)
    return {"draft_vocab_size": len(chosen), "target_vocab_size": vocab_size, "coverage": round(covered, 6)}


def _special(tokenizer: Any) -> set[int]:
    """Its own list leaves out added tokens that have no role, such as those of gpt-oss's channels."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _size(source: Path) -> int:
    if not source.is_file():
        raise UserError(f"{source} is missing; run the rule regenerate_dataset.")
    return source.stat().st_size


def _batches(source: Path, work: Tokenizing, processes: int, tally: Tally) -> Iterator[pa.RecordBatch]:
    """The cache's record batches; `tally` takes their counts as they go."""
    with source.open("rb") as file:
        progress = Progress("preprocess", sum(1 for _ in file), "conversations")
    for batch, counts in tokenize(read_jsonl(source), work, processes):
        tally.add(counts)
        progress.advance(counts.conversations)
        yield batch


def _counts(tally: Tally) -> dict[str, Any]:
    return {
        "conversations": tally.conversations,
        "refused": tally.refused,
        "first_refusal": tally.refusal,
        "nothing_learnt": tally.nothing_learnt,
        "sequences": tally.sequences,
        "tokens": tally.tokens,
        "supervised_tokens": tally.supervised.total(),
        "truncated": tally.truncated,
        "truncated_within_an_answer": tally.within,
        "cut_tokens": tally.cut_tokens,
        "empty": tally.empty,
        "tool_calls_not_learnt": tally.skipped_calls,
        "answers_sampled_in_other_tokens": tally.sampled_otherwise,
        "prompts_checked": tally.prompts_checked,
        "prompts_of_another_length": tally.prompts_differ,
        "longest": [tokens for tokens, _ in tally.longest],
        "longest_before_cut": [{"id": name, "tokens": tokens} for tokens, name in tally.wholes],
    }


def _preview(tokenizer: Any, tokens: list[tuple[int, bool]]) -> list[list]:
    """Runs of tokens that are learnt, or not, as text: a character may take several tokens."""
    runs: list[tuple[list[int], bool]] = []
    for token, learnt in tokens:
        if not runs or runs[-1][1] != learnt:
            runs.append(([], learnt))
        runs[-1][0].append(token)
    return [[tokenizer.decode(run), learnt] for run, learnt in runs]
