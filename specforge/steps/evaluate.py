"""Evaluate one draft by real speculative decoding of held-out prompts against the target."""

import logging
from pathlib import Path

import torch
from transformers import GenerationConfig

from specforge.config.steps import Evaluate
from specforge.data.chat import ChatEncoder
from specforge.data.template import Chat
from specforge.errors import UserError
from specforge.eval.decode import Decoded, Limits, decode_plain, decode_speculative
from specforge.eval.prompts import Prompt, read_prompts
from specforge.eval.stats import accept_rate_by_position, ratio_interval
from specforge.files import digest, exclusive, read_jsonl, sha256_file, write_json
from specforge.journal import Journal
from specforge.model.files import aux_layers_of, load_draft
from specforge.progress import Progress
from specforge.target.file import TargetFile
from specforge.target.model import Target, default_device

log = logging.getLogger("specforge")


class Bench:
    """Target and draft side by side, and the seeds that make runs of a sweep comparable prompt by prompt."""

    def __init__(self, source: TargetFile, draft: Path, chat: Chat, settings: Evaluate):
        device = default_device()
        dtype = getattr(torch, settings.dtype)
        self.settings = settings
        self.draft = load_draft(draft, dtype, device)
        self.target = Target(source.load(dtype, device), aux_layers_of(self.draft.config))
        self.encoder = ChatEncoder(source.tokenizer(), chat, source.end_ids())
        self.device = device
        ends = _end_tokens(self.target.model.generation_config, self.encoder)
        self.limits = Limits(settings.max_new_tokens, settings.num_draft_tokens, ends)

    @property
    def room(self) -> int:
        """Prompt tokens that leave room for the answer and a last round's surplus."""
        context = self.target.model.config.get_text_config().max_position_embeddings
        return context - self.settings.max_new_tokens - 2 * self.settings.num_draft_tokens - 2

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.settings.seed * 1_000_003 + number)

    def row(self, prompt: Prompt, number: int, temperature: float) -> dict:
        """One prompt decoded both ways; plain decoding above temperature 0 only where its time is wanted."""
        ids = prompt.ids.to(self.device)
        plain = None
        if temperature == 0 or number < self.settings.speed_prompts:
            plain = decode_plain(self.target, ids, self.limits, temperature, self._generator(number))
        generator = self._generator(number)
        spec = decode_speculative(self.target, self.draft, ids, self.limits, temperature, generator)
        row = {
            "id": _row_id(prompt, temperature),
            "prompt": prompt.id,
            "temperature": temperature,
            "tokens": len(spec.tokens) - 1,
            "rounds": spec.rounds,
            "seconds": spec.seconds,
        }
        if plain is not None:
            row |= {"plain_tokens": len(plain.tokens) - 1, "plain_seconds": plain.seconds}
        if temperature == 0:
            row["mismatch"] = _mismatch(prompt.id, plain, spec, self.limits.max_new_tokens)
        return row


def _end_tokens(generation: GenerationConfig, encoder: ChatEncoder) -> frozenset[int]:
    ends = generation.eos_token_id if generation.eos_token_id is not None else []
    return frozenset({*(ends if isinstance(ends, list) else [ends]), encoder.tokenizer.eos_token_id})


def _mismatch(prompt: str, plain: Decoded, spec: Decoded, count: int) -> dict | None:
    """Where the speculative text first leaves the target's own greedy text, and how near the tie was there."""
    texts = zip(plain.tokens, spec.tokens, strict=False)
    for position, (own, other) in enumerate(texts):
        if own != other:
            return {"prompt": prompt, "position": position, "logit_gap": plain.gaps[position]}
    if len(plain.tokens) != min(len(spec.tokens), count):
        return {"prompt": prompt, "position": min(len(plain.tokens), len(spec.tokens)), "logit_gap": None}
    return None


def evaluate(
    *,
    target: str,
    draft: str,
    prompts: str,
    settings: dict,
    chat: dict,
    template: str | None,
    ablation: str,
    lr: str,
    code: str,
    output: str,
    work: str,
    threads: int,
) -> dict:
    """Writes eval.json: accept length, accept rate by position, speed-up and losslessness at each temperature.

    Finished prompts are journaled in `work`, so a killed evaluation asks only for the rest. In fp32 a text that
    differs from the target's own greedy text raises UserError; in bf16 it is counted with its logit gap.
    """
    torch.set_num_threads(threads)
    options, source = Evaluate(**settings), TargetFile.read(target)
    bench = Bench(source, Path(draft).parent, Chat.of(chat, template), options)
    found = read_prompts(Path(prompts), bench.encoder, options.num_prompts, bench.room)
    key = digest(settings, chat, code, source.sha256, sha256_file(Path(draft)), sha256_file(Path(prompts)))
    with exclusive(Path(work) / key) as folder:
        _decode_all(bench, found.chosen, folder / "journal.jsonl", f"evaluate {ablation} lr{lr}")
        rows = list(read_jsonl(folder / "journal.jsonl"))
    report = {
        "run": {"ablation": ablation, "lr": lr},
        "target": source.model,
        "num_prompts": len(found.chosen),
        "skipped_long_prompts": found.too_long,
        "refused_prompts": found.refused,
        **options.model_dump(mode="json", include={"num_draft_tokens", "max_new_tokens", "dtype", "seed"}),
        "lossless": _lossless(rows, options.dtype),
        "temperatures": {f"{t:g}": _summary(rows, t, options) for t in options.temperatures},
    }
    write_json(Path(output), report)
    if found.refused:
        log.warning("%d prompts were refused and left out, first %s", found.refused, found.first_refusal)
    lengths = (f"{s['accept_length']['mean']:.2f} at T={t}" for t, s in report["temperatures"].items())
    log.info("evaluate %s lr%s: accept length %s", ablation, lr, ", ".join(lengths))
    return report


def _decode_all(bench: Bench, prompts: list[Prompt], path: Path, label: str) -> None:
    journal = Journal(path)
    work = [(*numbered, temperature) for temperature in bench.settings.temperatures for numbered in enumerate(prompts)]
    progress = Progress(label, len(work), "texts", done=len(journal))
    with journal:
        for number, prompt, temperature in work:
            if _row_id(prompt, temperature) not in journal:
                journal.append(bench.row(prompt, number, temperature))
                progress.advance()


def _row_id(prompt: Prompt, temperature: float) -> str:
    return f"{temperature:g}|{prompt.id}"


def _lossless(rows: list[dict], dtype: str) -> dict:
    checked = [row for row in rows if "mismatch" in row]
    mismatches = [row["mismatch"] for row in checked if row["mismatch"]]
    if mismatches and dtype == "float32":
        first = mismatches[0]
        raise UserError(
            f"Speculative text differs from the target's own greedy text on {len(mismatches)} of {len(checked)} "
            f"prompts, first at token {first['position']} of {first['prompt']} (logit gap {first['logit_gap']}); "
            "in fp32 this is a defect, please report it with the draft's manifest."
        )
    return {"checked": len(checked), "mismatches": mismatches}


def _summary(rows: list[dict], temperature: float, options: Evaluate) -> dict:
    own = [row for row in rows if row["temperature"] == temperature]
    spoken = [row for row in own if row["rounds"]]  # a text whose first token ends it took no round
    timed = [row for row in spoken if row.get("plain_tokens")]
    if not timed:
        raise UserError(
            f"At temperature {temperature:g} no timed answer is longer than its first token, so there is nothing to "
            "measure; raise evaluate.speed_prompts or num_prompts, or look at what the target answers."
        )
    ratio = {"samples": options.bootstrap_samples, "seed": options.seed}
    tokens, rounds = [row["tokens"] for row in spoken], [len(row["rounds"]) for row in spoken]
    speculative = [row["seconds"] * row["plain_tokens"] / row["tokens"] for row in timed]
    return {
        "accept_length": ratio_interval(tokens, rounds, **ratio),
        "accept_rate_by_position": accept_rate_by_position(
            [pair for row in spoken for pair in row["rounds"]], options.num_draft_tokens
        ),
        "speedup": ratio_interval([row["plain_seconds"] for row in timed], speculative, **ratio),
        "prompts": [{"id": row["prompt"], "tokens": row["tokens"], "rounds": len(row["rounds"])} for row in spoken],
    }
