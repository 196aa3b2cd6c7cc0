"""What tokenizing counts, chunk by chunk, for the gate before training and the report."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from specforge.config.steps import Preprocess
from specforge.data.cache import Row
from specforge.data.chat import Sequence
from specforge.errors import UserError

LONGEST = 10
PREVIEW_TOKENS = 160
PREVIEW_LEAD = 80  # of those, at most so many before the first that is supervised
SUMS = (
    "conversations", "refused", "nothing_learnt", "sequences", "tokens", "truncated", "within", "cut_tokens", "empty",
    "skipped_calls", "prompts_checked", "prompts_differ", "sampled_otherwise",
)  # fmt: skip


@dataclass
class Tally:
    """Counts that add up in any grouping of the same order; their size does not grow with the data."""

    conversations: int = 0
    refused: int = 0
    nothing_learnt: int = 0  # conversations without a sequence, though the template took them
    sequences: int = 0
    tokens: int = 0
    truncated: int = 0
    within: int = 0  # of the truncated, those cut within their first answer
    cut_tokens: int = 0
    empty: int = 0
    skipped_calls: int = 0  # turns of tool calls whose words are not what follows their prompt
    prompts_checked: int = 0  # answers whose prompt's length the engine said
    prompts_differ: int = 0  # of those, where the prompt encoded here has another
    sampled_otherwise: int = 0  # answers that the target said in other tokens than their text is encoded in
    supervised: Counter[int] = field(default_factory=Counter)
    longest: list[tuple[int, str]] = field(default_factory=list)  # as kept
    wholes: list[tuple[int, str]] = field(default_factory=list)  # before any cut
    ends: set[int] = field(default_factory=set)
    preview: list[tuple[int, bool]] = field(default_factory=list)
    refusal: str | None = None  # the first, with its conversation

    def note(self, counts: Mapping[str, int]) -> None:
        """Adds counts by the names of fields, such as what the encoder noticed."""
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)

    def refuse(self, name: str, cause: str) -> None:
        self.refused += 1
        self.refusal = self.refusal or f"{name}: {cause}"

    def take(self, name: str, sequence: Sequence, max_length: int) -> Row | None:
        """The row of a sequence, cut and counted; None when nothing is left to learn."""
        whole = len(sequence.ids)
        cut = sequence.cut(max_length)
        ids, mask = np.array(sequence.ids, np.int32), np.array(sequence.mask, np.bool_)
        if not mask[2:].any():  # the draft's first prediction is the third token
            self.empty += 1
            return None
        self.sequences += 1
        self.tokens += len(ids)
        self.truncated += cut
        self.within += cut and not sequence.turn_ends
        self.cut_tokens += whole - len(ids)
        self.longest = _longest([*self.longest, (len(ids), name)])
        self.wholes = _longest([*self.wholes, (whole, name)])
        if not self.preview:
            start = max(0, int(mask.argmax()) - PREVIEW_LEAD)
            shown = slice(start, start + PREVIEW_TOKENS)
            self.preview = list(zip(ids[shown].tolist(), mask[shown].tolist(), strict=True))
        return Row(name, ids, mask)

    def count(self, rows: list[Row]) -> None:
        """Counts the supervised ids of rows, all at once."""
        if rows:
            ids = np.concatenate([row.ids[row.mask] for row in rows])
            counts = np.bincount(ids)
            (seen,) = counts.nonzero()
            self.supervised.update(dict(zip(seen.tolist(), counts[seen].tolist(), strict=True)))

    def add(self, later: "Tally") -> None:
        """Takes in the counts of the chunk that follows."""
        self.note({name: getattr(later, name) for name in SUMS})
        self.supervised.update(later.supervised)
        self.longest = _longest([*self.longest, *later.longest])
        self.wholes = _longest([*self.wholes, *later.wholes])
        self.ends |= later.ends
        self.preview = self.preview or later.preview
        self.refusal = self.refusal or later.refusal


def _longest(found: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted(found, key=lambda one: -one[0])[:LONGEST]


def check(tally: Tally, coverage: float, options: Preprocess) -> None:
    """The gate before training. Raises UserError, saying why, when the data are not fit to learn from."""
    share = tally.supervised.total() / max(1, tally.tokens)
    conversations, made = tally.conversations, max(1, tally.sequences + tally.empty)
    _at_most(
        "max_refused_share", tally.refused, conversations, options, "conversations are refused by the chat template",
        f"first {tally.refusal}; choose another chat_template, mend the data or raise the limit",
    )  # fmt: skip
    _at_most(
        "max_prompt_mismatch_share", tally.prompts_differ, tally.prompts_checked, options,
        "prompts have another number of tokens here than the engine that answered said; its template, the template's "
        "variables or its way to write tools differ", "give both the same chat_template or raise the limit",
    )  # fmt: skip
    if share < options.min_supervised_share:
        raise UserError(
            f"Only {share:.2%} of {tally.tokens} tokens are supervised, less than preprocess.min_supervised_share "
            f"{options.min_supervised_share:.2%}; look at the chat template and max_length, or lower the limit."
        )
    _at_most(
        "max_empty_share", tally.empty, made, options, "sequences have nothing to learn within max_length",
        "raise max_length or the limit",
    )  # fmt: skip
    _at_most(
        "max_empty_share", tally.nothing_learnt, conversations, options, "conversations have nothing to learn",
        "look at the chat template and max_length or raise the limit",
    )  # fmt: skip
    _at_most(
        "max_truncated_share", tally.truncated, made, options, "sequences are longer than max_length",
        "raise max_length or the limit",
    )  # fmt: skip
    if coverage < options.min_coverage:
        raise UserError(
            f"The draft vocabulary covers {coverage:.2%} of the supervised tokens, less than "
            f"preprocess.min_coverage {options.min_coverage:.2%}; raise preprocess.draft_vocab_size or lower the limit."
        )


def _at_most(name: str, count: int, total: int, options: Preprocess, what: str, way_out: str) -> None:
    limit = getattr(options, name)
    if count > limit * total:
        raise UserError(f"{count} of {total} {what}, more than preprocess.{name} {limit:.2%}; {way_out}.")
