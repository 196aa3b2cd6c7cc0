"""Tokenize the conversations into an Arrow cache and choose the draft vocabulary."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Features, List, Value
from datasets.arrow_writer import ArrowWriter

from specforge.config.steps import Preprocess
from specforge.data.chat import ChatEncoder, Sequence
from specforge.data.vocab import coverage, draft_vocabulary
from specforge.errors import UserError
from specforge.files import atomic_path, read_jsonl, sha256_file, write_json
from specforge.model.vocab import save_vocab
from specforge.target.file import TargetFile

log = logging.getLogger("specforge")

FEATURES = Features({"id": Value("string"), "input_ids": List(Value("int32")), "loss_mask": List(Value("bool"))})
PREVIEW_TOKENS = 160


@dataclass
class Counts:
    """What went in and came out, for the gate and the report."""

    conversations: int = 0
    sequences: int = 0
    tokens: int = 0
    truncated: int = 0
    empty: int = 0
    supervised: Counter[int] = field(default_factory=Counter)
    longest: list[int] = field(default_factory=list)
    preview: list[tuple[int, bool]] = field(default_factory=list)

    def add(self, sequence: Sequence, cut: bool) -> None:
        self.sequences += 1
        self.tokens += len(sequence.ids)
        self.truncated += cut
        self.supervised.update(token for token, learned in zip(sequence.ids, sequence.mask, strict=True) if learned)
        self.longest = sorted([*self.longest, len(sequence.ids)], reverse=True)[:10]
        if not self.preview:
            self.preview = list(zip(sequence.ids, sequence.mask, strict=True))[:PREVIEW_TOKENS]


def preprocess_dataset(
    *, source: str, target: str, settings: dict, max_length: int, cache: str, vocab: str, summary: str
) -> dict:
    """Writes the cache (id, input_ids, loss_mask), d2t and t2d, and the summary that holds their digests.

    Raises UserError when a gate of the settings fails: too few supervised tokens, too little coverage.
    """
    options = Preprocess(**settings)
    model = TargetFile.read(target)
    tokenizer = model.tokenizer()
    encoder = ChatEncoder(tokenizer, options.chat_template)
    counts = Counts()
    with atomic_path(Path(cache)) as partial, ArrowWriter(features=FEATURES, path=str(partial)) as writer:
        for row in _rows(Path(source), encoder, max_length, counts):
            writer.write(row)
        writer.finalize()
    vocab_size = model.config().get_text_config().vocab_size
    always = {*tokenizer.all_special_ids, tokenizer.eos_token_id}
    chosen = draft_vocabulary(counts.supervised, always, options.draft_vocab_size, vocab_size)
    save_vocab(Path(vocab), chosen, vocab_size)
    report = {
        "conversations": counts.conversations,
        "sequences": counts.sequences,
        "tokens": counts.tokens,
        "supervised_tokens": counts.supervised.total(),
        "truncated": counts.truncated,
        "empty": counts.empty,
        "longest": counts.longest,
        "draft_vocab_size": len(chosen),
        "target_vocab_size": vocab_size,
        "coverage": round(coverage(counts.supervised, chosen), 6),
        "chat_template": options.chat_template or "tokenizer",
        "preview": [[tokenizer.decode([token]), learned] for token, learned in counts.preview],
        "sha256": {"cache": sha256_file(Path(cache)), "vocab": sha256_file(Path(vocab))},
    }
    _gate(report, options)
    write_json(Path(summary), report)
    log.info(
        "cache: %(sequences)d sequences, %(tokens)d tokens, %(supervised_tokens)d supervised, "
        "%(truncated)d truncated, %(empty)d without supervised tokens; coverage %(coverage).4f",
        report,
    )
    return report


def _rows(source: Path, encoder: ChatEncoder, max_length: int, counts: Counts) -> Iterator[dict]:
    for row in read_jsonl(source):
        counts.conversations += 1
        for sequence in encoder.sequences(row["conversations"]):
            cut = sequence.cut(max_length)
            if not any(sequence.mask[2:]):  # the draft's first prediction is the third token
                counts.empty += 1
                continue
            counts.add(sequence, cut)
            yield {"id": row["id"], "input_ids": sequence.ids, "loss_mask": sequence.mask}


def _gate(report: dict, options: Preprocess) -> None:
    share = report["supervised_tokens"] / max(1, report["tokens"])
    if share < options.min_supervised_share:
        raise UserError(
            f"Only {share:.2%} of {report['tokens']} tokens are supervised, less than preprocess.min_supervised_share "
            f"{options.min_supervised_share:.2%}; look at the chat template and max_length, or lower the limit."
        )
    if report["coverage"] < options.min_coverage:
        raise UserError(
            f"The draft vocabulary covers {report['coverage']:.2%} of the supervised tokens, less than "
            f"preprocess.min_coverage {options.min_coverage:.2%}; raise preprocess.draft_vocab_size or lower the limit."
        )
