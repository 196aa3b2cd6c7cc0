"""Make the default target from the data set's own conversations."""

import logging
from pathlib import Path

import torch

from specforge.config.steps import TinyTarget
from specforge.files import digest, exclusive, publish, read_jsonl, sha256_file, write_json
from specforge.target.tiny import build_model, build_tokenizer, encode, train_target
from specforge.train.resume import ResumeFolder

log = logging.getLogger("specforge")


def train_tiny_target(
    *,
    source: str,
    settings: dict,
    max_length: int,
    code: str,
    output: str,
    weights: str,
    work: str,
    threads: int,
) -> dict:
    """Trains on the conversations of `source` and saves model and tokenizer beside `weights`.

    `weights` is the path of model.safetensors, `output` of target.json, `work` the folder of resumable progress.
    """
    torch.set_num_threads(threads)
    tiny = TinyTarget(**settings)
    texts = (turn["content"] for row in read_jsonl(Path(source)) for turn in row["conversations"])
    tokenizer = build_tokenizer(texts, tiny.vocab_size, tiny.max_position_embeddings)
    data = encode(Path(source), tokenizer, max_length)
    model = build_model(tiny, tokenizer)
    log.info(
        "tiny target: %d parameters, vocabulary %d, %d conversations, %d tokens",
        model.num_parameters(), model.config.vocab_size, len(data), sum(map(len, data)),
    )  # fmt: skip
    with exclusive(Path(work) / digest(settings, max_length, code, sha256_file(Path(source)))) as folder:
        loss = train_target(model, data, tiny, ResumeFolder(folder))
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        for path in sorted((folder / "model").iterdir()):
            publish(path, Path(weights).parent / path.name)
    receipt = {
        "model": str(Path(weights).parent),
        "revision": None,
        "sha256": sha256_file(Path(weights)),
        "source": "tiny",
        "final_loss": round(loss, 4),
    }
    write_json(Path(output), receipt)
    return receipt
