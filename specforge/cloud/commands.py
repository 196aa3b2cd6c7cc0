"""One step by hand: `modal run -m specforge.cloud.commands::prep_dataset --dataset sharegpt --sample-size 10000`.

Options are those of the configuration; what is not given is as in config.yaml. Inputs are on the volumes, or in a
file here that goes up first; outputs stay on the volumes, under the paths that the pipeline gives them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import modal
import yaml

from specforge.cloud import app as functions
from specforge.cloud.app import app
from specforge.cloud.errors import explain
from specforge.cloud.mirror import Mirror
from specforge.cloud.places import spot
from specforge.config import Config, load_config
from specforge.config.paths import Paths, local_model
from specforge.data.catalogue import NAMES
from specforge.data.template import Chat
from specforge.errors import UserError
from specforge.log import log_to


class Sentence(SystemExit):
    """Ends `modal run` with one sentence instead of a traceback."""


def _configured(**options: Any) -> Config:
    """config.yaml with the options that were given; a section's as a dict."""
    file = Path("config.yaml")
    raw = yaml.safe_load(file.read_text()) if file.is_file() else {}
    for key, value in options.items():
        if isinstance(value, dict):
            given = {name: inner for name, inner in value.items() if inner is not None}
            raw[key] = (raw.get(key) or {}) | given
        elif value is not None:
            raw[key] = value
    return load_config(raw)


def _call(function: modal.Function, request: dict[str, Any], *, outputs: list[str], inputs: tuple[str, ...] = (),
          gpus: str | None = None) -> Any:  # fmt: skip
    """Runs a function of the app, shows what its step returned, and says where its files are."""
    log_to(None)
    digests, guests = Mirror().bring(inputs)
    order = {"inputs": digests, "guests": guests, "outputs": outputs}
    try:
        answer = (function.with_options(gpu=gpus) if gpus else function).remote(order=order, **request)
    except modal.exception.Error as error:
        raise explain(error, "modal run") from error
    if sentence := answer.get("error") or answer.get("traceback"):
        raise UserError(sentence)
    sys.stdout.write(json.dumps(answer["result"], indent=2, ensure_ascii=False) + "\n")
    for path in answer["files"]:
        sys.stdout.write(f"{path}: volume {spot(path).volume}, {spot(path).path}\n")
    return answer["result"]


def _require(cfg: Config, path: str) -> None:
    """Raises UserError for a data file that is not on its volume, before a GPU is paid for."""
    place = spot(path)
    if place is None:
        raise UserError(f"{path} lies on no volume; its path begins with datasets/.")
    if Mirror().size(place) is None:
        raise UserError(
            f"Dataset {cfg.dataset!r} not found in volume {place.volume} (no {place.path}); prepare it with `modal run "
            f"-m specforge.cloud.commands::prep_dataset --dataset {cfg.dataset}`. Supported names: {', '.join(NAMES)}."
        )


def _target(cfg: Config) -> str:
    """The receipt of the target on the volume, which is downloaded there first if it is a hub model."""
    paths = Paths(cfg)
    if cfg.target_model == "tiny":
        _require(cfg, paths.target)
    else:
        request = {"model": cfg.target_model, "skip_download": cfg.skip_download, "output": paths.target}
        files = tuple(local_model(cfg.target_model))
        _call(functions.download_model, request, outputs=[paths.target], inputs=files)
    return paths.target


def _chat(cfg: Config) -> dict[str, Any]:
    """The chat template in the words of the steps."""
    chat = Chat.choose(cfg.chat_template, cfg.chat_template_kwargs)
    return {"chat": chat.recipe(), "template": chat.text}


def _run(action: Any, *arguments: Any, **options: Any) -> None:
    try:
        action(*arguments, **options)
    except UserError as error:
        raise Sentence(f"Error: {error}") from None


@app.local_entrypoint()
def download_model(model: str | None = None, skip_download: bool | None = None) -> None:
    def action() -> None:
        _target(_configured(target_model=model, skip_download=skip_download))

    _run(action)


@app.local_entrypoint()
def prep_dataset(
    dataset: str | None = None, sample_size: int | None = None, split_eval: bool | None = None, seed: int | None = None
) -> None:
    def action() -> None:
        cfg = _configured(dataset=dataset, sample_size=sample_size, split_eval=split_eval, seed=seed)
        paths = Paths(cfg)
        files = paths.prepared | ({"test": paths.test} if cfg.split_eval else {})
        request = {
            "dataset": cfg.dataset, "sample_size": cfg.sample_size, "split_eval": cfg.split_eval, "seed": cfg.seed,
            "settings": cfg.prepare.recipe(), "test": None, **files,
        }  # fmt: skip
        local = (cfg.dataset,) if Path(cfg.dataset).is_file() else ()
        _call(functions.prep_dataset, request, outputs=list(files.values()), inputs=local)

    _run(action)


@app.local_entrypoint()
def prep_test_dataset(sample_size: int = 100) -> None:
    _run(_call, functions.prep_test_dataset, {"sample_size": sample_size}, outputs=[])


@app.local_entrypoint()
def check_dataset_exists(dataset: str) -> None:
    _run(_call, functions.check_dataset_exists, {"dataset": dataset}, outputs=[])


@app.local_entrypoint()
def regenerate_dataset(
    model: str | None = None,
    dataset: str | None = None,
    input_file: str | None = None,
    output_file: str | None = None,
    tp_size: int | None = None,
    num_servers: int | None = None,
    concurrency: int | None = None,
    num_samples: int | None = None,
    temperature: float | None = None,
) -> None:
    def action() -> None:
        section = {
            "tp_size": tp_size, "num_servers": num_servers, "concurrency": concurrency, "num_samples": num_samples,
            "temperature": temperature,
        }  # fmt: skip
        if tp_size or num_servers or concurrency:  # words of servers
            section["engine"] = "sglang"
        cfg = _configured(target_model=model, dataset=dataset, backend="modal", regenerate=section)
        paths = Paths(cfg)
        source = input_file or paths.prepared["train"]
        _require(cfg, source)
        files = paths.regenerated | ({"data": output_file} if output_file else {})
        request = {
            "source": source, "target": _target(cfg), "settings": cfg.regenerate.recipe(),
            "placement": cfg.regenerate.placement(), **_chat(cfg), "code": "modal run", "output": files["data"],
            "errors": files["errors"], "summary": files["summary"], "work": paths.regeneration_work, "threads": 4,
        }  # fmt: skip
        gpus = cfg.gpus("regenerate_dataset")
        function = getattr(functions, cfg.function("regenerate_dataset"))
        local = tuple(local_model(cfg.target_model))
        _call(function, request, outputs=list(files.values()), inputs=local, gpus=str(gpus) if gpus else None)

    _run(action)


@app.local_entrypoint()
def preprocess_dataset(
    dataset_file: str | None = None,
    target_model: str | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    dataset: str | None = None,
) -> None:
    def action() -> None:
        cfg = _configured(
            target_model=target_model, dataset=dataset, max_length=max_length, chat_template=chat_template
        )
        paths = Paths(cfg)
        source = dataset_file or paths.regenerated["data"]
        _require(cfg, source)
        request = {
            "source": source, "target": _target(cfg), "settings": cfg.preprocess.recipe(),
            "max_length": cfg.max_length, "threads": 4, **_chat(cfg), **paths.cache,
        }  # fmt: skip
        local = tuple(local_model(cfg.target_model))
        _call(functions.preprocess_dataset, request, outputs=list(paths.cache.values()), inputs=local)

    _run(action)


def _train(cfg: Config, function: modal.Function, ablation: str, lr: str) -> None:
    paths = Paths(cfg)
    _require(cfg, paths.cache["cache"])
    folder = paths.run.format(ablation=ablation, lr=lr)
    files = {
        "draft": f"{folder}/draft/model.safetensors", "card": f"{folder}/draft/README.md",
        "metrics": f"{folder}/metrics.jsonl", "manifest": f"{folder}/manifest.json",
    }  # fmt: skip
    request = {
        "target": _target(cfg), "cache": paths.cache["cache"], "vocab": paths.cache["vocab"],
        "cache_summary": paths.cache["summary"], "ablation": ablation, "lr": lr,
        "weights": cfg.ablation_catalogue[ablation].weights(), "settings": cfg.train.recipe(),
        "placement": cfg.train.placement(), "layers": cfg.aux_layers, "epochs": cfg.num_epochs,
        "wandb": {}, "code": "modal run", "regenerated": bool(cfg.regenerate), "work": f"{folder}/.work", "threads": 4,
        **files,
    }  # fmt: skip
    outputs = [f"{folder}/draft/config.json", *files.values()]
    local = tuple(local_model(cfg.target_model))
    _call(function, request, outputs=outputs, inputs=local, gpus=str(cfg.gpus("run_training")))


@app.local_entrypoint()
def run_training(
    ablation: str,
    lr: str | None = None,
    target_model: str | None = None,
    dataset: str | None = None,
    num_epochs: int | None = None,
    single_gpu: bool = False,
) -> None:
    def action() -> None:
        cfg = _configured(
            target_model=target_model, dataset=dataset, num_epochs=num_epochs, single_gpu=single_gpu, backend="modal",
            ablations=ablation, lr_sweep=False, ablation_lrs=f"{ablation}:{lr}" if lr else None,
        )  # fmt: skip
        function = functions.run_training_single_gpu if single_gpu else functions.run_training
        _train(cfg, function, *cfg.runs()[0])

    _run(action)


@app.local_entrypoint()
def run_training_single_gpu(
    ablation: str,
    lr: str | None = None,
    target_model: str | None = None,
    dataset: str | None = None,
    num_epochs: int | None = None,
) -> None:
    run_training(ablation, lr, target_model, dataset, num_epochs, single_gpu=True)


@app.local_entrypoint()
def evaluate(
    ablation: str,
    lr: str | None = None,
    target_model: str | None = None,
    dataset: str | None = None,
    num_prompts: int | None = None,
) -> None:
    def action() -> None:
        cfg = _configured(
            target_model=target_model, dataset=dataset, backend="modal", ablations=ablation, lr_sweep=False,
            ablation_lrs=f"{ablation}:{lr}" if lr else None, evaluate={"num_prompts": num_prompts},
        )  # fmt: skip
        paths, run = Paths(cfg), dict(zip(("ablation", "lr"), cfg.runs()[0], strict=True))
        _require(cfg, paths.test)
        result = paths.result.format(**run)
        request = {
            "target": _target(cfg), "draft": f"{paths.run.format(**run)}/draft/model.safetensors",
            "prompts": paths.test, "settings": cfg.evaluate.recipe(), **_chat(cfg),
            **run, "code": "modal run", "output": f"{result}/eval.json", "work": f"{result}/.work", "threads": 4,
        }  # fmt: skip
        local = tuple(local_model(cfg.target_model))
        _call(functions.evaluate, request, outputs=[request["output"]], inputs=local, gpus=str(cfg.gpus("evaluate")))

    _run(action)
