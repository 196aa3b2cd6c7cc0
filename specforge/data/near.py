"""Which prompts say nearly the same: the Jaccard similarity of their word triples, found without comparing all pairs.

Two texts are near-duplicates when the sets of their runs of three words agree to `threshold`: |A and B| / |A or B|.
At 0.7 a word before or after counts as the same from 6 words on, another word in the middle from 19; in a short
prompt one word is the question, and another word another question. Case, punctuation and white space do not count.

The search is exact, not a sketch. Sets of similarity t share an element among the first |A| - ceil(t|A|) + 1 of any
fixed order, so only those are indexed and looked up: the rarest first, since what a template writes into all prompts
tells them apart least. From the place of the first shared element on, no more is shared than the rest of either set.
"""

import math
import re
import unicodedata
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import xxhash

WORDS = 3
# Scripts without spaces between words: each sign counts as a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{UNSPACED}]|[^ {UNSPACED}]+")
ROUNDING = 1e-9  # a share of a set that is a whole number but for rounding is that number


def normalise(text: str) -> str:
    """Texts that differ in case, white space, punctuation or Unicode form only become equal."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return re.sub(r"[\W_]+", " ", text.casefold()).strip() or text.strip()


def words(prompt: str) -> list[str]:
    """The words of a normalised prompt."""
    return WORD.findall(prompt)


def shingles(prompt: str) -> set[int]:
    """64-bit hashes of the runs of three words of a normalised prompt; of a shorter one, of all its words."""
    said = words(prompt)
    runs = {" ".join(said[start : start + WORDS]) for start in range(max(1, len(said) - WORDS + 1))}
    return {xxhash.xxh3_64_intdigest(run.encode()) for run in runs}


def similarity(one: set[int], other: Collection[int]) -> float:
    """Jaccard similarity of two sets of shingles, 0 to 1."""
    shared = len(one.intersection(other))
    return shared / (len(one) + len(other) - shared)


class NearIndex:
    """Named prompts, to be searched for one that another prompt is nearly equal to.

    The first search after an `add` sorts what there is; add all, then search.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._names: list[str] = []
        self._sets: list[np.ndarray] = []
        self._postings: _Postings | None = None

    def add(self, name: str, prompt: str) -> None:
        self._names.append(name)
        self._sets.append(_array(shingles(prompt)))
        self._postings = None

    def nearest(self, prompt: str) -> tuple[float, str] | None:
        """(similarity, name) of the most similar prompt, if any is similar enough; of equal ones the last name."""
        if not self._sets:
            return None
        if self._postings is None:
            self._postings = _index(self._sets, self.threshold)
        found = shingles(prompt)
        near = self._postings.candidates(_array(found), self.threshold)
        scored = ((similarity(found, self._sets[holder].tolist()), self._names[holder]) for holder in near)
        return max((pair for pair in scored if pair[0] >= self.threshold), default=None)


class _Postings(NamedTuple):
    """How many sets hold each shingle, and, ordered by shingle, which set has it where in its prefix."""

    known: np.ndarray
    counts: np.ndarray
    shingles: np.ndarray
    holders: np.ndarray
    sizes: np.ndarray  # of the holder
    places: np.ndarray

    def candidates(self, found: np.ndarray, threshold: float) -> list[int]:
        """The sets that may be similar enough to `found`, ascending."""
        prefix = _prefix(found, self.known, self.counts, threshold)
        starts = np.searchsorted(self.shingles, prefix, "left")
        lengths = np.searchsorted(self.shingles, prefix, "right") - starts
        mine = np.repeat(np.arange(len(prefix)), lengths)
        hits = np.arange(len(mine)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        sizes = self.sizes[hits]
        shared = np.minimum(len(found) - mine, sizes - self.places[hits])  # at most, when nothing before is
        needed = threshold / (1 + threshold) * (len(found) + sizes) - ROUNDING
        return np.unique(self.holders[hits[shared >= needed]]).tolist()


def _index(sets: list[np.ndarray], threshold: float) -> _Postings:
    known, counts = np.unique(np.concatenate(sets), return_counts=True)
    prefixes = [_prefix(one, known, counts, threshold) for one in sets]
    lengths = [len(prefix) for prefix in prefixes]
    flat = np.concatenate(prefixes)
    order = np.argsort(flat, kind="stable")
    holders = np.repeat(np.arange(len(sets)), lengths)[order]
    places = np.concatenate([np.arange(length) for length in lengths])[order]
    sizes = np.array([len(one) for one in sets])[holders]
    return _Postings(known, counts, flat[order], holders, sizes, places)


def _prefix(found: np.ndarray, known: np.ndarray, counts: np.ndarray, threshold: float) -> np.ndarray:
    """The rarest elements of a set, one of which it shares with every set that is similar enough."""
    place = np.minimum(np.searchsorted(known, found), len(known) - 1)
    rarity = np.where(known[place] == found, counts[place], 0)
    needed = math.ceil(threshold * len(found) - ROUNDING)  # at least so many elements are shared
    return found[np.lexsort((found, rarity))][: len(found) - needed + 1]


def _array(found: set[int]) -> np.ndarray:
    return np.array(sorted(found), dtype=np.uint64)
