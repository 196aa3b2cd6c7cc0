"""Which prompts say nearly the same: the Jaccard similarity of their word triples, found without comparing all pairs.

Two texts are near-duplicates when the sets of their runs of three words agree to `threshold`: |A and B| / |A or B|.
At 0.7 a word before or after counts as the same from 6 words on, another word in the middle from 19; in a short
prompt one word is the question, and another word another question. Case, punctuation and white space do not count.

The search is exact, not a sketch: sets of similarity t share an element among the first |A| - ceil(t|A|) + 1 of any
fixed order (here that of a hash), so only those are indexed and looked up.
"""

import math
import re
import unicodedata
from array import array
from collections import defaultdict

import xxhash

WORDS = 3
# Scripts without spaces between words: each sign counts as a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{UNSPACED}]|[^ {UNSPACED}]+")


def normalise(text: str) -> str:
    """Texts that differ in case, white space, punctuation or Unicode form only become equal."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return re.sub(r"[\W_]+", " ", text.casefold()).strip() or text.strip()


def shingles(prompt: str) -> array:
    """Ascending 64-bit hashes of the runs of three words of a normalised prompt; of a shorter one, of all its words."""
    words = WORD.findall(prompt)
    runs = {" ".join(words[start : start + WORDS]) for start in range(max(1, len(words) - WORDS + 1))}
    return array("Q", sorted(xxhash.xxh3_64_intdigest(run.encode()) for run in runs))


def similarity(one: array, other: array) -> float:
    """Jaccard similarity of two sets of shingles, 0 to 1."""
    shared = len(set(one).intersection(other))
    return shared / (len(one) + len(other) - shared)


class NearIndex:
    """Named prompts, to be searched for one that another prompt is nearly equal to."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._names: list[str] = []
        self._sets: list[array] = []
        self._holders: dict[int, list[int]] = defaultdict(list)

    def add(self, name: str, prompt: str) -> None:
        found = shingles(prompt)
        for shingle in self._prefix(found):
            self._holders[shingle].append(len(self._sets))
        self._names.append(name)
        self._sets.append(found)

    def nearest(self, prompt: str) -> tuple[float, str] | None:
        """(similarity, name) of the most similar prompt, if any is similar enough; of equal ones the last name."""
        found = shingles(prompt)
        near = {holder for shingle in self._prefix(found) for holder in self._holders.get(shingle, ())}
        scored = ((similarity(found, self._sets[holder]), self._names[holder]) for holder in near)
        return max((pair for pair in scored if pair[0] >= self.threshold), default=None)

    def _prefix(self, found: array) -> array:
        needed = math.ceil(self.threshold * len(found) - 1e-9)  # at least so many elements are shared
        return found[: len(found) - needed + 1]
