"""Each mistake in the configuration is one sentence that says where it is and what would be right."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from workspace import REPOSITORY, snakemake

from specforge.config import load_config
from specforge.errors import UserError

CATALOGUE = "ablation_catalogue.baseline"


def merged(changes: dict[str, Any]) -> dict[str, Any]:
    """config.yaml with `changes` at dotted keys."""
    raw = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return raw


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_epoch": 3}, r"num_epoch: unknown key; did you mean 'num_epochs'\?"),
        ({"train.batchsize": 3}, r"train\.batchsize: unknown key; did you mean 'batch_size'\?"),
        ({"regenerate.temprature": 1}, r"regenerate\.temprature: unknown key; did you mean 'temperature'\?"),
        ({f"{CATALOGUE}.lamda_ce": 1}, rf"{CATALOGUE}\.lamda_ce: unknown key; did you mean 'lambda_ce'\?"),
        ({"num_epochs": "three"}, r"num_epochs: 'three' .*integer"),
        ({"num_epochs": 2.5}, r"num_epochs: 2\.5 .*integer"),
        ({"num_epochs": 0}, r"num_epochs: 0 .*greater than or equal to 1"),
        ({"split_eval": "perhaps"}, r"split_eval: 'perhaps' .*boolean"),
        ({"train": 3}, r"train: 3 "),
        ({"regenerate.max_tokens": "many"}, r"regenerate\.max_tokens: 'many' .*integer"),
        ({"ablations": "baseline,fullopd"}, r"'fullopd' is not in ablation_catalogue \(baseline, .*full-opd\)"),
        ({"ablations": ""}, r"ablations is empty"),
        ({f"{CATALOGUE}.lrs": [0]}, r"learning rate 0 must be a positive number"),
        ({f"{CATALOGUE}.lrs": ["-1e-4"]}, r"learning rate '-1e-4' must be a positive number"),
        ({f"{CATALOGUE}.lrs": ["fast"]}, r"learning rate 'fast' must be a positive number"),
        ({f"{CATALOGUE}.lrs": [1e-4, "1.0e-4"]}, r"the rates 1e-4, 1e-4 name one run twice"),
        ({f"{CATALOGUE}.lrs": []}, rf"{CATALOGUE}\.lrs: "),
        ({f"{CATALOGUE}.lambda_ce": 0}, r"all weights are 0"),
        ({"regenerate.tp_size": 2, "regenerate.num_servers": 5}, r"tp_size \* num_servers is 2 \* 5 = 10"),
        ({"regenerate.temperature": 2.5}, r"regenerate\.temperature: 2\.5 .*less than or equal to 2"),
        ({"regenerate.top_k": 0}, r"regenerate\.top_k: 0 .*greater than or equal to 1"),
        ({"regenerate.shards": 0}, r"regenerate\.shards: 0 .*greater than or equal to 1"),
        ({"regenerate.endpoints": ["http://a"]}, r"regenerate: endpoints lists the URLs of engine 'endpoint'"),
        (
            {"regenerate.endpoints": ["a:3000"], "regenerate.engine": "endpoint"},
            r"regenerate: endpoints: 'a:3000' is not a URL; write it like http://",
        ),
        ({"regenerate.reasoning_parser": "qwen3"}, r"reasoning_parser is for the servers of engine 'sglang'"),
        ({"chat_template_kwargs": ["x"]}, r"chat_template_kwargs: \['x'\] .*dictionary"),
        ({"chat_template_kwargs": {"tools": []}}, r"'tools' is what the steps themselves tell"),
        ({"backend": "cloud"}, r"backend: 'cloud' .*'local'"),
        ({"ablation_lrs": "baseline=1e-4"}, r"'baseline=1e-4' is not ablation:rate"),
        ({"ablation_lrs": "baseline:0"}, r"learning rate '0' must be a positive number"),
        ({"ablation_lrs": "base:1e-4"}, r"'base' is not in ablation_catalogue"),
        ({"chat_template": ""}, r"chat_template: '' "),
        ({"chat_template_kwargs": "enable_thinking"}, r"chat_template_kwargs: 'enable_thinking' "),
        ({"output_prefix": "a/b"}, r"output_prefix: 'a/b' "),
        ({"dataset_revision": ["v1"]}, r"dataset_revision: \['v1'\] .*string"),
        ({"prepare.near_duplicate": 0}, r"prepare\.near_duplicate: 0 .*greater than 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(changes: dict[str, Any], words: str):
    with pytest.raises(UserError) as caught:
        load_config(merged(changes))
    message = str(caught.value)
    assert re.search(words, message)
    assert len(message.splitlines()) == 1
    assert message.endswith((".", "?"))


def test_each_of_several_mistakes_has_its_line():
    with pytest.raises(UserError) as caught:
        load_config(merged({"num_epoch": 3, "max_length": "long", "train.batch_size": 0}))
    assert sorted(line.partition(":")[0] for line in str(caught.value).splitlines()) == [
        "max_length", "num_epoch", "train.batch_size",
    ]  # fmt: skip


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False)])
def test_flags_may_be_written_as_the_command_line_gives_them(word: str, value: bool):
    assert load_config(merged({"lr_sweep": word})).lr_sweep is value


def test_a_revision_of_digits_is_text():
    assert load_config(merged({"dataset_revision": 1234567})).dataset_revision == "1234567"


def test_null_may_be_written_as_the_command_line_gives_it():
    cfg = load_config(merged({"sample_size": "null", "ablation_lrs": "null", "output_prefix": "null"}))
    assert (cfg.sample_size, cfg.ablation_lrs, cfg.output_prefix) == (None, None, None)


def test_numbers_and_flags_inside_a_section_may_be_text_as_the_command_line_leaves_them():
    train = load_config(merged({"train": {"batch_size": "16", "init_head_from_target": "false"}})).train
    assert (train.batch_size, train.init_head_from_target) == (16, False)
    with pytest.raises(UserError, match=r"train\.batch_size: '1\.5' should be a valid integer"):
        load_config(merged({"train": {"batch_size": "1.5"}}))


def test_what_the_template_is_told_has_one_order_and_may_be_text_as_the_command_line_leaves_it():
    told = [{"b": "x", "enable_thinking": "false"}, {"enable_thinking": False, "b": "x"}]
    recipes = [load_config(merged({"chat_template_kwargs": words})).chat_template_kwargs for words in told]
    assert repr(recipes[0]) == repr(recipes[1])


@pytest.mark.parametrize("spelling", ["5e-5", "5.0e-5", 0.00005, "0.00005", "0.5E-4"])
def test_a_rate_is_one_path_however_it_is_written(spelling: object):
    cfg = load_config(merged({f"{CATALOGUE}.lrs": [spelling], "ablations": "baseline"}))
    assert cfg.runs() == [("baseline", "5e-5")]


def test_snakemake_shows_the_sentence_and_no_traceback():
    result = snakemake(Path(REPOSITORY), "-n", "--config", "num_epoch=3", overlays=())
    assert result.returncode == 1
    assert "config: num_epoch: unknown key; did you mean 'num_epochs'?" in result.stdout
    assert "Traceback" not in result.stdout
