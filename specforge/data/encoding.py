"""Text to ids by the tokenizer alone, and where text may be cut without changing them."""

from collections.abc import Iterable, Sequence
from typing import Any

WORDS = 200_000  # whose ids a BPE remembers; with its own 10,000 real text takes half as long again


class TextEncoder:
    """Ids of texts, many at once, exactly as the tokenizer gives them without special tokens of its own."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._backend is not None:  # what its file says of truncation and padding is for other uses
            self._backend.no_truncation()
            self._backend.no_padding()
            if hasattr(self._backend.model, "_resize_cache"):  # not public, and no more than faster
                self._backend.model._resize_cache(WORDS)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        if self._backend is None:
            return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [found.ids for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def one(self, text: str) -> list[int]:
        return self([text])[0]


def safe_cuts(tokenizer: Any, source: str, always: Iterable[int]) -> dict[str, int]:
    """Added tokens at which a text may be cut: text and id.

    A fast tokenizer first finds its added tokens in the text, leftmost and longest, and encodes what lies between
    them piece by piece. So for such a token E, encode(x + E + y) = encode(x + E) + encode(E + y) without its first
    id, unless E takes blanks to its side along, or another added token can cover E's first character. Candidates are
    those that the template's `source` writes, and the ids `always`.
    """
    if not tokenizer.is_fast:
        return {}
    added = tokenizer.added_tokens_decoder
    if any(token.single_word for token in added.values()):  # these look at their neighbours
        return {}
    always = {*always, *tokenizer.all_special_ids}
    chosen = {token.content: number for number, token in added.items() if number in always or token.content in source}
    plain = {token.content for token in added.values() if not (token.lstrip or token.rstrip or token.normalized)}
    contents = [token.content for token in added.values()]
    return {
        text: number
        for text, number in chosen.items()
        if text in plain and not any(_covers_start(other, text) for other in contents if other != text)
    }


def _covers_start(other: str, token: str) -> bool:
    """Whether `other`, beginning before `token`, can reach into it."""
    if token in other[1:] or (other.startswith(token) and len(other) > len(token)):
        return True
    return any(other.endswith(token[:size]) for size in range(1, min(len(other), len(token))))
