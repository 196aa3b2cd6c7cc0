"""Tokenizing against sgl-project/SpecForge's `build_eagle3_dataset`: tokens a second on one core, and memory.

`SPECFORGE_PEER=<checkout> python benchmarks/preprocessing.py [conversations]`. Both sides get the same tokenizer, the
same conversations and the same core, in turns, each in a process of its own. Ours is timed from the JSON Lines file
to the cache on disk, with the counts for the draft vocabulary; the peer from the loaded data set to its cache, without
its pass for the vocabulary. Then ours alone on ten times the data: its peak of memory must not grow with them.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

ROUNDS = 3
MAX_LENGTH = 2048
VOCABULARY = 16_000
CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE of ChatML turns, trained on Python's own manual."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(topics.values(), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    ).save_pretrained(folder)


def make_conversations(path: Path, count: int) -> None:
    """One to six answers a conversation, 3.5 on average, in the manual's words: some 30 asked and 150 answered."""
    rng, words = random.Random(0), " ".join(topics.values()).split(" ")

    def say(length: int) -> str:
        start = rng.randrange(len(words) - 400)
        return " ".join(words[start : start + rng.randint(length // 2, length * 3 // 2)]).strip() or "yes"

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [
                {"role": role, "content": say(length)}
                for _ in range(rng.randint(1, 6))
                for role, length in (("user", 30), ("assistant", 150))
            ]
            file.write(json.dumps({"id": str(number), "conversations": turns}) + "\n")


def ours(folder: Path) -> tuple[float, int]:
    """Seconds and tokens."""
    from specforge.data.cache import write_cache
    from specforge.data.chunks import tokenize
    from specforge.data.tally import Tally
    from specforge.data.tokenizing import Recipe, Tokenizing
    from specforge.files import read_jsonl
    from specforge.target.file import TargetFile

    work, tally = Tokenizing(Recipe(TargetFile(str(folder), None, ""), MAX_LENGTH)), Tally()

    def batches():
        for batch, counts in tokenize(read_jsonl(folder / "data.jsonl"), work, 1):
            tally.add(counts)
            yield batch

    start = time.perf_counter()
    write_cache(folder / "ours.arrow", batches())
    return time.perf_counter() - start, tally.tokens


def peer(folder: Path) -> tuple[float, int]:
    """Seconds and tokens of the peer's own function; the data set is loaded before."""
    sys.path.insert(0, os.environ["SPECFORGE_PEER"])
    from datasets import load_dataset
    from peer import _stub_triton
    from transformers import AutoTokenizer

    with _stub_triton():
        build = import_module("specforge.data.preprocessing").build_eagle3_dataset
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = load_dataset("json", data_files=str(folder / "data.jsonl"), split="train", cache_dir=str(folder / "hf"))
    start = time.perf_counter()
    cache = {"cache_dir": str(folder / "theirs"), "cache_key": str(time.time_ns())}
    made = build(data, tokenizer, "qwen", MAX_LENGTH, num_proc=None, **cache)
    seconds = time.perf_counter() - start
    return seconds, sum(len(row[0]) for row in made.with_format("arrow")[:]["input_ids"].to_pylist())


def child(side: str, folder: Path) -> dict:
    """Runs one side in a process of its own, on one core."""
    ran = subprocess.run([sys.executable, __file__, side, str(folder)], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{side} failed:\n{ran.stderr[-4000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def run_side(side: str, folder: Path) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seconds, tokens = {"ours": ours, "peer": peer}[side](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {"rate": tokens / seconds, "tokens": tokens, "seconds": seconds, "peak_mib": peak / 1024}
    sys.stdout.write(json.dumps(told) + "\n")


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_tokenizer(folder)
        make_conversations(folder / "data.jsonl", count)
        sides = ["ours", *(["peer"] if os.environ.get("SPECFORGE_PEER") else [])]
        rounds = [{side: child(side, folder) for side in sides} for _ in range(ROUNDS)]
        for side in sides:
            rates = sorted(round_[side]["rate"] for round_ in rounds)
            peak = max(round_[side]["peak_mib"] for round_ in rounds)
            sys.stdout.write(
                f"{side}: {rates[ROUNDS // 2]:,.0f} tokens/s ({rates[0]:,.0f} to {rates[-1]:,.0f} over {ROUNDS} "
                f"rounds), {rounds[0][side]['tokens']:,} tokens, largest process {peak:,.0f} MiB\n"
            )
        if "peer" in sides:
            ratios = sorted(r["ours"]["rate"] / r["peer"]["rate"] for r in rounds)
            sys.stdout.write(f"ratio: {ratios[ROUNDS // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})\n")
        sizes = {count: rounds[0]["ours"]["peak_mib"]}
        for more in (3 * count, 10 * count):
            make_conversations(folder / "data.jsonl", more)
            sizes[more] = child("ours", folder)["peak_mib"]
        for (fewer, before), (more, after) in pairwise(sizes.items()):
            sys.stdout.write(f"memory: {before:,.0f} MiB for {fewer:,} conversations, {after:,.0f} for {more:,}\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run_side(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else 2000)
