"""The EAGLE-3 draft: one decoder layer over (next token's embedding, target features), and its own small head.

Li et al. 2025, "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time Test".
Module names are those of the checkpoint that SGLang and vLLM load.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Projections of the 2H-wide input; what attends to what is the caller's."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        width = 2 * config.hidden_size
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        return self.o_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MidLayer(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
            setattr(self, name, nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(self, embedding: Tensor, hidden: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x = torch.cat((self.input_layernorm(embedding), self.hidden_norm(hidden)), dim=-1)
        hidden = hidden + self.self_attn(x, rotary, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Draft(nn.Module):
    """Draft of a target with hidden size H over a draft vocabulary of Vd of the target's V tokens.

    `d2t` int64 [Vd] holds target id minus draft id, `t2d` bool [V] marks the tokens that are in.
    """

    def __init__(self, config: LlamaConfig, d2t: Tensor, t2d: Tensor):
        super().__init__()
        self.config = config
        self.fc = nn.Linear(3 * config.hidden_size, config.hidden_size, bias=False)
        self.midlayer = MidLayer(config)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.rotary = LlamaRotaryEmbedding(config)
        self.register_buffer("d2t", d2t)
        self.register_buffer("t2d", t2d)

    @property
    def target_ids(self) -> Tensor:
        """Target id of each draft id, int64 [Vd]."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def step(self, embedding: Tensor, hidden: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """One draft step: [B, T, H] embeddings of the next tokens and features or own last output, to [B, T, H].

        `hidden` is `fc(features)` at step 0 and this function's own result after it; it is not normed.
        `positions` int64 [B or 1, T] are rotary positions.
        """
        return self.midlayer(embedding, hidden, self.rotary(hidden, positions), attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] to logits over the draft vocabulary, [..., Vd]."""
        return self.lm_head(self.norm(hidden))

    def init_weights(self, generator: torch.Generator) -> None:
        """Normal with the target's initializer range, as transformers initialises a decoder layer; norms one."""
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(0.0, self.config.initializer_range, generator=generator)
