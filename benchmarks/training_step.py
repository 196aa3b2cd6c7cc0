"""Our draft training step against SpecForge's, on the same weights and tensors, each in a process of its own.

    SPECFORGE_PEER=CHECKOUT python benchmarks/training_step.py cpu    # hidden 128, 4 x 512 tokens, one thread
    SPECFORGE_PEER=CHECKOUT python benchmarks/training_step.py cuda   # Qwen3-8B's shapes, 4 x 2048 tokens, bf16

A step is: teacher from the target's final states, 7 unrolled steps forward and backward, clipped AdamW over fp32
masters. Half the tokens are supervised, in answers of 128. Rounds of both sides alternate; the table has medians
and the spread over rounds. Without SPECFORGE_PEER only ours is measured.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from exchange import Answer, Request, ask
from peer import find_peer, peer_mask
from torch import Tensor
from transformers import LlamaConfig

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Setup:
    """Sizes of a comparison, and how it is run."""

    config: dict
    batch: int
    length: int
    request: dict
    rounds: int


def llama(hidden: int, heads: int, kv_heads: int, mlp: int, vocab: int, kept: int) -> dict:
    config = LlamaConfig(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=hidden // heads,
        intermediate_size=mlp, num_hidden_layers=1, vocab_size=vocab, draft_vocab_size=kept,
        max_position_embeddings=4096, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    return config.to_dict()


CPU = {"repeats": 5, "warmup": 2, "optimizer": True}
GPU = {
    "device": "cuda",
    "dtype": "bfloat16",
    "backend": "flex_attention",
    "repeats": 10,
    "warmup": 4,
    "optimizer": True,
}
SETUPS = {
    "cpu": Setup(llama(128, 4, 2, 256, 2048, 1024), 4, 512, CPU, 3),
    "cuda": Setup(llama(4096, 32, 8, 12288, 151936, 32000), 4, 2048, GPU, 2),
}


def tensors_of(setup: Setup) -> dict[str, Tensor]:
    """A random draft and a random target's side of a batch, the target's likely tokens within the draft vocabulary."""
    c = setup.config
    device, dtype = setup.request.get("device", "cpu"), getattr(torch, setup.request.get("dtype", "float32"))
    generator = torch.Generator(device).manual_seed(0)
    hidden, vocab, kept, size = c["hidden_size"], c["vocab_size"], c["draft_vocab_size"], c["head_dim"]
    heads, kv_heads, mlp = c["num_attention_heads"], c["num_key_value_heads"], c["intermediate_size"]

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype).mul_(scale).cpu()

    shapes = {
        "fc": (hidden, 3 * hidden), "midlayer.self_attn.q_proj": (heads * size, 2 * hidden),
        "midlayer.self_attn.k_proj": (kv_heads * size, 2 * hidden),
        "midlayer.self_attn.v_proj": (kv_heads * size, 2 * hidden),
        "midlayer.self_attn.o_proj": (hidden, heads * size), "midlayer.mlp.gate_proj": (mlp, hidden),
        "midlayer.mlp.up_proj": (mlp, hidden), "midlayer.mlp.down_proj": (hidden, mlp), "lm_head": (kept, hidden),
    }  # fmt: skip
    made = {f"{name}.weight": normal(*shape, scale=shape[1] ** -0.5) for name, shape in shapes.items()}
    for name in ("midlayer.input_layernorm", "midlayer.hidden_norm", "midlayer.post_attention_layernorm", "norm"):
        made[f"{name}.weight"] = torch.ones(hidden, dtype=dtype)
    shape = (setup.batch, setup.length)
    answers = (torch.arange(setup.length) // 128 % 2 == 1).expand(shape)
    head = normal(vocab, hidden, scale=2 * hidden**-0.5)
    head[kept:] *= 0.5
    return made | {
        "d2t": torch.zeros(kept, dtype=torch.int64), "t2d": torch.arange(vocab) < kept,
        "embed_tokens.weight": normal(vocab, hidden), "target_head": head,
        "features": normal(*shape, 3 * hidden), "target_hidden": normal(*shape, hidden),
        "input_ids": torch.randint(vocab, shape, generator=torch.Generator().manual_seed(1)),
        "attention_mask": torch.ones(shape, dtype=torch.int64), "loss_mask": answers.long(),
    }  # fmt: skip


def measure(setup: Setup) -> dict[str, list[Answer]]:
    """Answers by side, one a round."""
    tensors, request = tensors_of(setup), Request(setup.config, **setup.request)
    found: dict[str, list[Answer]] = {"ours": []}
    for _ in range(setup.rounds):
        if find_peer():
            theirs = tensors | {"loss_mask": peer_mask(tensors["loss_mask"].bool())}
            found.setdefault("SpecForge", []).append(ask(HERE / "peer.py", theirs, request))
        found["ours"].append(ask(HERE / "ours.py", tensors, request))
    return found


def table(setup: Setup, found: dict[str, list[Answer]]) -> str:
    """Tokens a second (all tokens of the batch), memory, and the ratios."""
    tokens = setup.batch * setup.length
    lines = ["| side | tokens/s, median | over rounds | peak memory, GiB |", "|---|---|---|---|"]
    rates, peaks = {}, {}
    for side, answers in found.items():
        each = [tokens / answer.seconds.median().item() for answer in answers]
        rates[side] = statistics.median(each)  # of two rounds their mean
        peaks[side] = max(answer.peak_bytes for answer in answers) / 2**30
        lines.append(f"| {side} | {rates[side]:.0f} | {min(each):.0f} to {max(each):.0f} | {peaks[side]:.2f} |")
    if "SpecForge" in found:
        memory = peaks["ours"] / peaks["SpecForge"]
        lines.append(f"| ratio | {rates['ours'] / rates['SpecForge']:.2f} | | {memory:.2f} |")
    facts = found["ours"][-1].gradients
    if "peak_rate" in facts:
        rate, peak = facts["flops"].item() * rates["ours"] / tokens, facts["peak_rate"].item()
        lines.append(
            f"\nours: {facts['flops'].item() / tokens / 1e9:.1f} GFLOP a token needed, {rate / 1e12:.0f} TFLOP/s, "
            f"{rate / peak:.0%} of the measured {peak / 1e12:.0f}; {torch.cuda.get_device_name()}"
        )
    return "\n".join(lines)


def main(device: str) -> None:
    torch.set_num_threads(1)
    setup = SETUPS[device]
    sys.stdout.write(table(setup, measure(setup)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
