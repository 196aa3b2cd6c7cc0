"""Decoding one prompt by the target alone and by chain speculation, in the same code, so that times compare."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from specforge.eval.drafter import Drafter
from specforge.eval.sampling import distribution, pick, verify_greedy, verify_sampled
from specforge.model.draft import Draft
from specforge.target.model import Target


@dataclass
class Decoded:
    """A text and what it cost, the target's prefill excepted.

    `rounds` holds, a verification, how many proposed tokens were taken and how many were judged (an end token
    leaves the rest unjudged). `gaps` are the target's top-two logit differences at each token, in plain greedy
    decoding only.
    """

    tokens: list[int]
    seconds: float
    rounds: list[tuple[int, int]]
    gaps: list[float]


@dataclass(frozen=True)
class Limits:
    max_new_tokens: int
    num_draft_tokens: int
    end_tokens: frozenset[int]

    def ended(self, tokens: list[int]) -> bool:
        return len(tokens) >= self.max_new_tokens or bool(tokens and tokens[-1] in self.end_tokens)

    def clip(self, tokens: Iterable[int]) -> list[int]:
        """Up to and with the first end token."""
        kept = []
        for token in tokens:
            kept.append(token)
            if token in self.end_tokens:
                break
        return kept


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    return pick(distribution(logits, temperature), generator) if temperature > 0 else int(logits.argmax())


@torch.inference_mode()
def decode_plain(
    target: Target, prompt: Tensor, limits: Limits, temperature: float, generator: torch.Generator
) -> Decoded:
    """The target alone, one token a pass. `prompt` is int64 [1, n]."""
    cache = DynamicCache()
    _, final = target(prompt, cache)
    logits = target.head(final[0, -1])
    started = time.perf_counter()
    tokens, gaps = [], []
    while True:
        tokens.append(_choose(logits, temperature, generator))
        if temperature == 0:
            top = logits.topk(2).values
            gaps.append(float(top[0] - top[1]))
        if limits.ended(tokens):
            return Decoded(tokens, time.perf_counter() - started, [], gaps)
        _, final = target(torch.tensor([[tokens[-1]]], device=prompt.device), cache)
        logits = target.head(final[0, -1])


@torch.inference_mode()
def decode_speculative(
    target: Target, draft: Draft, prompt: Tensor, limits: Limits, temperature: float, generator: torch.Generator
) -> Decoded:
    """Chain speculation: K proposals, one verification pass, the accepted ones and a token of the target's own.

    The first token is the prefill's, as in plain decoding. A round that runs past `max_new_tokens` counts whole
    and its surplus stays in `tokens`; tokens after an end token count nowhere.
    """
    count = limits.num_draft_tokens
    cache = DynamicCache()
    features, final = target(prompt, cache)
    tokens = [_choose(target.head(final[0, -1]), temperature, generator)]
    started = time.perf_counter()
    capacity = prompt.shape[1] + limits.max_new_tokens + 2 * count + 2
    drafter = Drafter(draft, target, capacity)
    drafter.extend(torch.cat((prompt[:, 1:], prompt.new_tensor([tokens])), dim=1), features)
    rounds = []
    while not limits.ended(tokens):
        chain = drafter.propose(count, temperature, generator)
        features, final = target(prompt.new_tensor([[tokens[-1], *chain.tokens]]), cache)
        logits = target.head(final[0])
        if temperature > 0:
            ids = drafter.target_ids
            accepted, own = verify_sampled(chain.tokens, chain.q, ids, logits, temperature, generator)
        else:
            accepted, own = verify_greedy(chain.tokens, logits)
        new = limits.clip([*chain.tokens[:accepted], own])
        tokens += new
        ended = len(new) <= accepted
        rounds.append((len(new), len(new)) if ended else (accepted, min(accepted + 1, count)))
        if accepted < count:
            cache.crop(accepted - count)
        if not limits.ended(tokens):
            drafter.extend(prompt.new_tensor([new]), features[:, : accepted + 1])
    return Decoded(tokens, time.perf_counter() - started, rounds, [])
