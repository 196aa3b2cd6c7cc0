"""One training, in this process or in as many as torchrun started: `torchrun ... -m specforge.train.run REQUEST`.

The request is the JSON of what `train_draft` takes.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from specforge.config.steps import Train
from specforge.errors import UserError
from specforge.files import publish, read_json, write_json
from specforge.log import log_to
from specforge.model.draft import Draft
from specforge.model.files import draft_config, save_draft
from specforge.model.vocab import load_vocab
from specforge.target.file import TargetFile
from specforge.target.model import Target, aux_layers, check_head
from specforge.target.packed import ORDINARY, is_ordinary
from specforge.train.batches import read_cache
from specforge.train.loop import Trainer, best_name
from specforge.train.losses import LossWeights
from specforge.train.parallel import Team, team
from specforge.train.preempt import Preempted, die_with_parent, sigterm_flag
from specforge.train.resume import ResumeFolder
from specforge.train.tracking import wandb_report
from specforge.train.unroll import Objective

log = logging.getLogger("specforge")
SAVE_SECONDS = 300  # that processes have to save and end after SIGTERM
FAILED = 78  # exit status of a process that ended with a sentence
TORCHRUN = (
    "from specforge.train.preempt import die_with_parent as d; d(); from torch.distributed.run import main; main()"
)


def train_draft(request: dict[str, Any]) -> None:
    """Trains and leaves draft/, metrics.jsonl and facts.json in `request["folder"]`, where its states are too.

    Keys: `folder`, `target` (a target.json), `cache`, `vocab`, `recipe` (all that decides the result: weights, lr,
    settings, layers, epochs, inputs), `placement`, `label`, `wandb`, `threads`.
    """
    torch.set_num_threads(request["threads"])
    torch.set_flush_denormal(True)  # a confident draft's softmax has many; a CPU takes a hundred times as long for each
    recipe, folder = request["recipe"], Path(request["folder"])
    options = Train(**recipe["settings"], **request["placement"])
    with team() as crew:
        if options.target_tp not in (1, crew.size):
            raise UserError(
                f"train.target_tp is {options.target_tp}, but {crew.size} processes train; set it to {crew.size} to "
                "spread the target over all of them, or to 1 to give each its own copy."
            )
        trainer = build_trainer(request, options, crew)
        tracked = request["wandb"] if crew.leads else {}
        with wandb_report(tracked, request["label"], recipe, folder) as report:
            resume = ResumeFolder(folder, recipe, options.keep_states)
            steps = trainer.train(float(recipe["lr"]), recipe["epochs"], resume, request["label"], report)
        if crew.leads:
            _leave(trainer, folder, options, steps)


def _leave(trainer: Trainer, folder: Path, options: Train, steps: int) -> None:
    save_draft(folder / "draft", trainer.draft, getattr(torch, options.dtype))
    if options.publish == "best" and trainer.best["step"]:
        for name in ("config.json", "model.safetensors"):
            publish(folder / best_name(trainer.best["step"]) / name, folder / "draft" / name)
    facts = {
        "steps": steps,
        "tokens": trainer.tokens,
        "seconds": round(trainer.seconds, 1),
        "processes": trainer.team.size,
        "device": torch.cuda.get_device_name() if trainer.device.type == "cuda" else "CPU",
        "aux_layers": list(trainer.target.layers),
        "draft_parameters": sum(p.numel() for p in trainer.draft.parameters()),
        "best": trainer.best,
    }
    write_json(folder / "facts.json", facts)


def build_trainer(request: dict[str, Any], options: Train, crew: Team) -> Trainer:
    """Target, draft and data of a request, on this process's device."""
    recipe, source = request["recipe"], TargetFile.read(request["target"])
    dtype = getattr(torch, options.dtype)
    config = source.config().get_text_config()
    check_head(config)
    layers = aux_layers(config.num_hidden_layers, tuple(recipe["layers"]) if recipe["layers"] else None)
    d2t, t2d = load_vocab(Path(request["vocab"]), config.vocab_size)
    target = Target(source.load(dtype, crew.device, options.target_tp), layers)
    draft = Draft(draft_config(config, len(d2t), layers), d2t, t2d)
    draft.init_weights(torch.Generator().manual_seed(options.seed))
    if options.init_head_from_target:
        draft.copy_head(target.head_rows(draft.target_ids), target.decoder.norm.weight)
    draft.to(device=crew.device, dtype=dtype)
    if options.rollout == "on_policy" and not is_ordinary(target.model.config.get_text_config()):
        raise UserError(
            f"train.rollout: on_policy needs a target of ordinary attention ({', '.join(sorted(ORDINARY))}, without "
            f"windows), and {source.model} is none; set it to teacher_forced."
        )
    objective = Objective(
        LossWeights(**recipe["weights"]), options.ttt_length, options.loss_decay, options.opd_temperature,
        options.mask_shift,
    )  # fmt: skip
    return Trainer(draft, target, read_cache(Path(request["cache"])), objective, options, crew)


def _log_files() -> list[str]:
    """The file that this process's words go to, if any."""
    return [handler.baseFilename for handler in log.handlers if isinstance(handler, logging.FileHandler)]


def train_on(processes: int, request: dict[str, Any]) -> None:
    """`train_draft` here, or in `processes` that torchrun starts on this machine and that end when this one does."""
    file = Path(request["folder"]) / "request.json"
    write_json(file, request)
    if processes == 1:
        train_draft(request)
        return
    told, preempted = file.with_name("error.json"), file.with_name("preempted")
    for left in (told, preempted):
        left.unlink(missing_ok=True)
    command = [sys.executable, "-c", TORCHRUN, "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "specforge.train.run", str(file), *_log_files()]
    env = {"OMP_NUM_THREADS": str(request["threads"]), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVE_SECONDS)}
    with sigterm_flag() as asked:
        child = subprocess.Popen(command, env=os.environ | env)
        try:
            status = _wait(child, asked)
        finally:
            child.kill()
    if status and told.is_file():
        raise UserError(read_json(told)["error"])
    if status and (asked.is_set() or preempted.is_file()):
        raise Preempted(143)
    if status:
        raise RuntimeError(f"{processes} training processes ended with status {status}; their words are above")


def _wait(child: subprocess.Popen, asked: threading.Event) -> int:
    """The child's exit status; SIGTERM is handed on to it, once."""
    told = False
    while True:
        try:
            return child.wait(0.2)
        except subprocess.TimeoutExpired:
            if asked.is_set() and not told:
                child.send_signal(signal.SIGTERM)
                told = True


def main(request_file: str, log_file: str = os.devnull) -> None:
    """One of torchrun's processes; the first one speaks, all leave their error for the parent."""
    die_with_parent()
    folder = Path(request_file).parent
    if os.environ.get("RANK", "0") == "0":
        log_to(log_file)
    try:
        train_draft(json.loads(Path(request_file).read_text()))
    except UserError as error:
        write_json(folder / "error.json", {"error": str(error)})
        sys.exit(FAILED)
    except torch.OutOfMemoryError as error:
        said = f"the GPU ran out of memory ({error}); lower train.micro_tokens or choose GPUs with more."
        write_json(folder / "error.json", {"error": said})
        sys.exit(FAILED)
    except Preempted:
        (folder / "preempted").touch()
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
