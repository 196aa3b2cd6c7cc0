"""The EAGLE-3 draft: one decoder layer over (next token's embedding, target features), and its own small head.

Li et al. 2025, "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time Test".
Module names are those of the checkpoint that SGLang and vLLM load.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specforge.model.compiled import compiled

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Rotary = tuple[Tensor, Tensor]


class _RowNorm(torch.autograd.Function):
    """x / rms(x) * weight over rows [M, H], its gradient in one go: autograd's is a third slower on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(torch.linalg.vecdot(x, x)[:, None] / x.shape[1] + eps)
        normed = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        normed, weight, scale = ctx.saved_tensors
        by_weight = torch.linalg.vecdot(grad, normed, dim=0)
        by_normed = grad * weight
        along = torch.linalg.vecdot(by_normed, normed)[:, None] / normed.shape[1]
        return by_normed.sub_(normed * along).mul_(scale), by_weight, None


class RMSNorm(nn.RMSNorm):
    """Root mean square norm (Zhang and Sennrich 2019) over the last dimension; half precision as PyTorch does it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
            return super().forward(x)
        return _RowNorm.apply(x, self.weight, self.eps)


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

    def heads(self, projection: nn.Linear, x: Tensor) -> Tensor:
        """Rows [M, 2H] to [M, heads, D]."""
        return projection(x).unflatten(-1, (-1, self.head_dim))


@compiled
def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding of rows [M, heads, D] by cosines and sines [M, D] (Su et al. 2021, half-split form)."""
    cos, sin = (part.unsqueeze(1) for part in rotary)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@compiled
def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(_gated(self.gate_proj(x), self.up_proj(x)))


class MidLayer(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
            setattr(self, name, RMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(self, embedding: Tensor, hidden: Tensor, rotary: Rotary, attend: Attend, keep: Tensor | None) -> Tensor:
        x = torch.cat((self.input_layernorm(embedding), self.hidden_norm(hidden)), dim=-1)
        attn = self.self_attn
        k, v = rotate(attn.heads(attn.k_proj, x), rotary), attn.heads(attn.v_proj, x)
        if keep is not None:
            x, hidden, *rotary = (part.index_select(0, keep) for part in (x, hidden, *rotary))
        q = rotate(attn.heads(attn.q_proj, x), rotary)
        hidden = hidden + attn.o_proj(attend(q, k, v).flatten(1))
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
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.rotary = LlamaRotaryEmbedding(config)
        self.register_buffer("d2t", d2t)
        self.register_buffer("t2d", t2d)

    def _apply(self, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> "Draft":
        """Moves and casts; but frequencies in bf16 would be a whole turn off within 2048 positions."""
        frequencies = {name: buffer for name, buffer in self.rotary.named_buffers()}
        super()._apply(convert, recurse)
        for name, buffer in frequencies.items():
            self.rotary._buffers[name] = buffer.to(self.lm_head.weight.device)
        return self

    @property
    def target_ids(self) -> Tensor:
        """Target id of each draft id, int64 [Vd]."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def step(
        self, embedding: Tensor, hidden: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None
    ) -> Tensor:
        """One draft step over rows.

        Args:
            embedding: of the token after each row's position, [M, H].
            hidden: `fc(features)` at step 0, this function's own result after it; not normed. [M, H]
            positions: rotary positions, int64 [M].
            attend: maps q [M', heads, D], k and v [M, key-value heads, D] to [M', heads, D].
            keep: rows whose output is wanted, int64 [M']; the others only give keys and values.

        Returns:
            [M', H].
        """
        cos, sin = self.rotary(hidden, positions[None])
        return self.midlayer(embedding, hidden, (cos[0], sin[0]), attend, keep)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] to logits over the draft vocabulary, [..., Vd]."""
        return self.lm_head(self.norm(hidden))

    @torch.no_grad()
    def copy_head(self, rows: Tensor, norm: Tensor) -> None:
        """Starts the head from the target's rows [Vd, H] and its final norm [H]: no token need be learnt again."""
        self.lm_head.weight.copy_(rows)
        self.norm.weight.copy_(norm)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Norms one; matrices normal with standard deviation fan_in^-1/2; queries equal to their group's keys.

        The token just read enters only through attention to its own position. Equal queries and keys score that
        position sqrt(head_dim) above the others, so the draft starts out reading it, instead of first having to
        find it among all (measured in README, "What the initialisation is worth").
        """
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        attention = self.midlayer.self_attn
        keys = attention.k_proj.weight.unflatten(0, (-1, attention.head_dim))
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        attention.q_proj.weight.copy_(keys.repeat_interleave(group, 0).flatten(0, 1))
