"""Our step against sgl-project/SpecForge's own code, run from a checkout in a process of its own (benchmarks/).

Settled between the two: ours counts a position by the token it predicts, the peer by the token two before it
(`peer_mask`); ours sums over supervised positions, the peer averages over all B*T; the peer also drops positions whose
target argmax lies outside the draft vocabulary, of which the case has none.
"""

from dataclasses import dataclass
from pathlib import Path

import exchange
import peer
import pytest
import torch
from tiny_draft import vocab_maps
from torch import Tensor
from transformers import LlamaConfig

BENCHMARKS = Path(peer.__file__).parent
STEPS, DECAY, TOLERANCE = 7, 0.8, 1e-4
HIDDEN, HEAD_DIM, VOCAB, KEPT = 64, 16, 200, torch.arange(3, 195, 3)
LENGTHS = (24, 17)
ANSWERS = (((3, 7), (11, 12), (15, 24)), ((1, 5), (8, 9), (12, 17)))


@dataclass(frozen=True)
class Case:
    """A batch, the target's side of it and a draft, all fp32.

    `weights` by checkpoint name; `ids` int64 [B, T], right-padded; `mask` bool [B, T] over the tokens to predict;
    `features` [B, T, 3H] and `final`, normed, [B, T, H]; `embedding` and `head` [V, H]; `kept` int64 [Vd].
    """

    config: LlamaConfig
    weights: dict[str, Tensor]
    ids: Tensor
    mask: Tensor
    features: Tensor
    final: Tensor
    embedding: Tensor
    head: Tensor
    kept: Tensor


@pytest.fixture(scope="module")
def checkout() -> None:
    if peer.find_peer() is None:
        pytest.skip("SPECFORGE_PEER names no checkout of sgl-project/SpecForge to compare with")


@pytest.fixture(scope="module")
def case() -> Case:
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    config = LlamaConfig(
        vocab_size=VOCAB,
        draft_vocab_size=len(KEPT),
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    shapes = {
        "fc": (HIDDEN, 3 * HIDDEN),
        "midlayer.self_attn.q_proj": (4 * HEAD_DIM, 2 * HIDDEN),
        "midlayer.self_attn.k_proj": (2 * HEAD_DIM, 2 * HIDDEN),
        "midlayer.self_attn.v_proj": (2 * HEAD_DIM, 2 * HIDDEN),
        "midlayer.self_attn.o_proj": (HIDDEN, 4 * HEAD_DIM),
        "midlayer.mlp.gate_proj": (96, HIDDEN),
        "midlayer.mlp.up_proj": (96, HIDDEN),
        "midlayer.mlp.down_proj": (HIDDEN, 96),
        "lm_head": (len(KEPT), HIDDEN),
    }
    weights = {f"{name}.weight": 1.5 * normal(*shape) * shape[1] ** -0.5 for name, shape in shapes.items()}
    for name in ("midlayer.input_layernorm", "midlayer.hidden_norm", "midlayer.post_attention_layernorm", "norm"):
        weights[f"{name}.weight"] = 0.5 + torch.rand(HIDDEN, generator=generator)
    head = normal(VOCAB, HIDDEN) * HIDDEN**-0.5
    head[KEPT] *= 4  # likely tokens are the draft's, the others keep some probability
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (length, answers) in enumerate(zip(LENGTHS, ANSWERS, strict=True)):
        ids[row, :length] = torch.randint(VOCAB, (length,), generator=generator)
        for start, end in answers:
            mask[row, start:end] = True
    final = normal(*ids.shape, HIDDEN)
    logits = final @ head.T
    taught = logits[:, :-1][mask[:, 1:]]  # x[s + 1] is taught by the target at s
    assert torch.isin(taught.argmax(-1), KEPT).all()
    assert torch.softmax(taught, -1)[:, KEPT].sum(-1).min() < 0.97
    features, embedding = normal(*ids.shape, 3 * HIDDEN), normal(VOCAB, HIDDEN)
    return Case(config, weights, ids, mask, features, final, embedding, head, KEPT)


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("compact", [True, False], ids=["compact teacher", "whole logits"])
def test_every_step_and_gradient_is_the_peers(checkout, case, compact):
    d2t, t2d = vocab_maps(case.kept, VOCAB)
    tensors = case.weights | {
        "d2t": d2t,
        "t2d": t2d,
        "embed_tokens.weight": case.embedding,
        "target_head": case.head,
        "features": case.features,
        "target_hidden": case.final,
        "input_ids": case.ids,
        "attention_mask": (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long(),
        "loss_mask": case.mask.long(),
    }
    request = exchange.Request(case.config.to_dict(), compact=compact, ttt_length=STEPS, decay=DECAY)
    theirs = exchange.ask(BENCHMARKS / "peer.py", tensors | {"loss_mask": peer.peer_mask(case.mask)}, request)
    ours = exchange.ask(BENCHMARKS / "ours.py", tensors, request)
    mean = 1 / case.ids.numel()
    for step, (loss, wanted) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        assert relative(loss * mean, wanted) < TOLERANCE, f"step {step}"
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, wanted in theirs.gradients.items():
        assert wanted.abs().max() > 0, name
        assert relative(ours.gradients[name] * mean, wanted) < TOLERANCE, name
