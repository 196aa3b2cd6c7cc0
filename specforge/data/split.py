"""Which conversations are held out. No prompt of the evaluation occurs in training, in any turn, nor nearly."""

import hashlib
from collections import defaultdict

from specforge.data.near import NearIndex, normalise, words
from specforge.data.records import Record
from specforge.data.rejected import RejectedRow

HELD_OUT = "held_out_prompt"
TELLING_WORDS = 6  # a later turn of fewer ("go on") says nothing without what came before it


def user_prompts(record: Record) -> list[str]:
    """The normalised user turns, in order."""
    return [normalise(turn.content) for turn in record.conversations if turn.role == "user"]


class Split:
    """Sides by a hash of the conversation's first prompt, whatever other rows there are and in whatever order.

    The prompt stands for the conversation so that a question asked many times is on one side; by the whole
    conversation nearly every common question would be held out once and lost to training. A question about an image
    is another question about another image.

    `add` every record, then ask what leaks. Held out once is held out for good: a record of the other side that says
    what a held-out conversation begins with, or nearly (see `near`), is the one that goes.
    """

    def __init__(self, test_share: float, seed: int, near_duplicate: float):
        self.bound, self.seed = test_share * 2**64, seed
        self._held_out: dict[str, NearIndex] = defaultdict(lambda: NearIndex(near_duplicate))  # by image
        self._prompts: set[bytes] = set()

    def add(self, record: Record) -> bool:
        """Whether the record is held out, which depends on nothing but itself."""
        prompt = user_prompts(record)[0]
        about = f"\n{record.image}" if record.image else ""  # a normalised prompt of words has no line break
        digest = hashlib.sha256(f"{self.seed}:{prompt}{about}".encode()).digest()[:16]
        if int.from_bytes(digest[:8], "big") >= self.bound:
            return False
        if digest not in self._prompts:
            self._prompts.add(digest)
            self._held_out[record.image].add(record.id, prompt)
        return True

    def leak(self, record: Record) -> RejectedRow | None:
        """Why a record that is not held out may not be trained on either, None for nearly all."""
        held_out = self._held_out.get(record.image)
        if held_out is None:
            return None
        for number, prompt in enumerate(user_prompts(record), 1):
            if number > 1 and len(words(prompt)) < TELLING_WORDS:
                continue
            near = held_out.nearest(prompt)
            if near is not None:
                share, name = near
                detail = f"user turn {number} says the first prompt of the held-out conversation {name!r:.80}"
                return RejectedRow(HELD_OUT, f"{detail} (similarity {share:.2f}), so training may not hold it.")
        return None
