"""Which conversations are held out. No prompt of the evaluation occurs in training, in any turn."""

import hashlib
import re
from collections import defaultdict


def normalise(text: str) -> str:
    """Texts that differ in case, white space or punctuation only become equal."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def user_prompts(record: dict) -> list[str]:
    """The normalised user turns, in order."""
    return [normalise(turn["content"]) for turn in record["conversations"] if turn["role"] == "user"]


class Split:
    """Sides by a hash of the first prompt, so that they stay as they are when rows are added.

    `add` every record, then ask `is_test`. A held-out prompt that training says in a later turn would leak:
    its conversations go to training as well, which may cost others their place, until nothing leaks.
    """

    def __init__(self, test_share: float, seed: int):
        self.bound, self.seed = test_share * 2**64, seed
        self.moved = 0
        self._train_later: set[bytes] = set()
        self._test_later: dict[bytes, set[bytes]] = defaultdict(set)
        self._test_count: dict[bytes, int] = defaultdict(int)

    def add(self, record: dict) -> None:
        first, *later = map(self._digest, user_prompts(record))
        if int.from_bytes(first[:8], "big") >= self.bound:
            self._train_later.update(later)
        else:
            self._test_count[first] += 1
            self._test_later[first].update(later)

    def settle(self) -> None:
        """Call once after the last `add`: moves what leaks to training and counts it in `moved`."""
        while leaks := self._train_later & self._test_count.keys():
            for first in leaks:
                self.moved += self._test_count.pop(first)
                self._train_later |= self._test_later.pop(first)

    def is_test(self, record: dict) -> bool:
        return self._digest(user_prompts(record)[0]) in self._test_count

    def _digest(self, prompt: str) -> bytes:
        return hashlib.sha256(f"{self.seed}:{prompt}".encode()).digest()[:16]
