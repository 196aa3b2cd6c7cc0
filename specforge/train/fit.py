"""How many tokens a process takes at once: a first guess from the memory, halved by the loop where it was too bold."""

import torch
from transformers import LlamaConfig

from specforge.config.steps import Train

ENOUGH = 16384  # tokens; more at once is no faster
SHARE = 0.7  # of the free memory, for what grows with the tokens


def fitting_tokens(config: LlamaConfig, settings: Train, device: torch.device, reserved: int) -> int:
    """Tokens of a micro-batch, when `reserved` bytes are still to be taken for good. On a CPU, ENOUGH."""
    if device.type != "cuda":
        return ENOUGH
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(ENOUGH, int(SHARE * (free - reserved) / bytes_a_token(config, settings))))


def bytes_a_token(config: LlamaConfig, settings: Train) -> int:
    """What forward and backward keep for one token, were all supervised: activations of every step, and the teacher."""
    width = torch.finfo(getattr(torch, settings.dtype)).bits // 8
    heads = config.num_attention_heads + config.num_key_value_heads
    a_step = 8 * config.hidden_size + 4 * config.intermediate_size + 3 * heads * config.head_dim
    return width * (settings.ttt_length * a_step + 2 * config.draft_vocab_size + 3 * config.hidden_size)
