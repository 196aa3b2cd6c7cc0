"""The default target: a small Qwen3 chat model trained here, from nothing, on the conversations themselves."""

from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from specforge.config.steps import TinyTarget
from specforge.files import read_jsonl
from specforge.progress import Progress
from specforge.train.batches import step_batches
from specforge.train.optim import MasterAdamW, scheduled_lr
from specforge.train.preempt import Preempted, sigterm_flag
from specforge.train.resume import ResumeFolder, State

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SAVE_EVERY = 50
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def build_tokenizer(texts: Iterator[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE (any text round-trips) with ChatML turns."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def build_model(settings: TinyTarget, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 whose vocabulary is rounded up to a multiple of 64, as real targets' are."""
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=settings.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(settings.seed)
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def encode(source: Path, tokenizer: PreTrainedTokenizerFast, max_length: int) -> list[torch.Tensor]:
    """Each conversation as chat text, int64 ids of at most `max_length` tokens."""
    rendered = (
        tokenizer.apply_chat_template(row["conversations"], tokenize=False, add_generation_prompt=False)
        for row in read_jsonl(source)
    )
    return [torch.tensor(tokenizer.encode(text, add_special_tokens=False)[:max_length]) for text in rendered]


def language_model_loss(model: Qwen3ForCausalLM, batch: list[torch.Tensor]) -> torch.Tensor:
    """Mean next-token cross-entropy over a right-padded batch."""
    ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)[:, 1:]
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    learned = labels >= 0
    return F.cross_entropy(model.lm_head(states[learned]), labels[learned])


def train_target(
    model: Qwen3ForCausalLM, data: list[torch.Tensor], settings: TinyTarget, resume: ResumeFolder
) -> float:
    """Trains for `settings.steps` steps, continuing from `resume`; returns the last step's loss in nats a token."""
    lengths = [len(ids) for ids in data]
    size = max(1, round(settings.batch_tokens * len(data) / sum(lengths)))
    optimizer = MasterAdamW(model, (0.9, 0.95), 0.01)
    state = resume.load()
    done, loss = 0, float("nan")
    if state is not None:
        optimizer.load(state.tensors)
        done, loss = state.step, state.facts["loss"]
    progress = Progress("tiny target", settings.steps, "steps", done)
    model.train()
    with sigterm_flag() as asked:
        for step, batch in step_batches(lengths, size, settings.seed, done, settings.steps):
            value = language_model_loss(model, [data[index] for index in batch])
            value.backward()
            optimizer.step(scheduled_lr(step, settings.steps, settings.lr, 0.05), 1.0)
            loss, finished = value.item(), step + 1
            progress.advance(note=f"loss {loss:.3f}")
            if finished % SAVE_EVERY == 0 or finished == settings.steps or asked.is_set():
                resume.save(State(finished, optimizer.state(), {"loss": loss}))
            if asked.is_set() and finished < settings.steps:
                raise Preempted(143)
    model.eval()
    return loss
