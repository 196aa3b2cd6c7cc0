"""A random Qwen3 chat model of a few kilobytes, and conversations for it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from specforge.files import write_json

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "How many apples are in the basket by the door?",
    "There are seven apples in the basket; two of them are green.",
    "Please write a short poem about rain on a tin roof.",
)


def make_tiny_target(
    folder: Path, max_position_embeddings: int = 256, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """Saves model and tokenizer under `folder`; the same bytes every time. Returns `folder`."""
    tokenizer = tokenizer or _tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=False,
        initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_target_file(folder: Path, model: Path) -> Path:
    """A target.json that points at `model`."""
    write_json(folder / "target.json", {"model": str(model), "revision": None, "sha256": "0" * 64})
    return folder / "target.json"


def make_conversations(count: int) -> list[dict]:
    """Native records of one to three answers; every fourth begins with a system turn."""
    records = []
    for number in range(count):
        turns = [{"role": "system", "content": "Be brief."}] if number % 4 == 0 else []
        for turn in range(1 + number % 3):
            turns += [
                {"role": "user", "content": f"{SENTENCES[(number + turn) % 4]} ({number})"},
                {"role": "assistant", "content": f"recorded answer {number}.{turn}"},
            ]
        records.append({"id": f"c{number}", "conversations": turns})
    return records


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
