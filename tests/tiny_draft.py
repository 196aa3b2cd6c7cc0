"""A target of four random layers, drafts for it, and steps that kill themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tiny import make_tiny_target
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from specforge.model.draft import Draft
from specforge.model.files import draft_config
from specforge.target.model import Target

torch.set_num_threads(1)  # two busy cores: more threads than cores make tiny matrices a hundred times slower
LAYERS = (0, 1, 2)
DYING = """
import importlib, json, os, signal, sys
step, module, name, calls, sent, arguments = sys.argv[1:]
module, left = importlib.import_module(module), int(calls)
plain = getattr(module, name)

def dying(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), getattr(signal, sent))
    return plain(*args, **kwargs)

setattr(module, name, dying)
getattr(importlib.import_module("specforge.steps." + step), step)(**json.loads(arguments))
"""


def make_deep_target(folder: Path) -> Path:
    """Like the tiny target, with the four layers that three feature layers need."""
    make_tiny_target(folder)
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers, config.layer_types = 4, ["full_attention"] * 4
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    return folder


def random_target(vocab_size: int = 40, dtype: torch.dtype = torch.float32) -> Target:
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    return Target(model.to(dtype).eval().requires_grad_(False), LAYERS)


def vocab_maps(target_ids: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[target_ids] = True
    return target_ids - torch.arange(len(target_ids)), t2d


def random_draft(target: Target, target_ids: torch.Tensor, seed: int = 0) -> Draft:
    config = draft_config(target.model.config, len(target_ids), LAYERS)
    draft = Draft(config, *vocab_maps(target_ids, config.vocab_size))
    draft.init_weights(torch.Generator().manual_seed(seed))
    return draft.to(target.head.weight.dtype)


def run_dying(step: str, function: str, calls: int, signal: str, arguments: dict) -> int:
    """Runs a step in a process that gets `signal` at the given call of `function` ("module:name"); its exit status."""
    command = [sys.executable, "-c", DYING, step, *function.split(":"), str(calls), signal, json.dumps(arguments)]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, timeout=300).returncode
