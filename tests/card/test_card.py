"""What the card says, that its commands and front matter parse, and what never gets into it."""

import json
import re
import shlex
from copy import deepcopy
from dataclasses import fields

import pytest
import yaml

from specforge.card.card import TERMS, model_card
from specforge.config.steps import Train
from specforge.train.losses import LossWeights

MANIFEST = {
    "run": {"ablation": "full-opd", "lr": "6e-3", "weights": {"lambda_ce": 0.4, "lambda_rkl": 0.5, "beta_hinge": 0.1}},
    "settings": Train(batch_size=12).recipe() | {"epochs": 3, "aux_layers": [1, 17, 32]},
    "inputs": {"target": "a1" * 32, "cache": "b2" * 32, "vocab": "c3" * 32},
    "draft_sha256": "d4" * 32,
    "steps": 31800,
    "tokens": 9876543,
    "draft_parameters": 1234567,
    "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
    "commit": "5999cbb12345+",
}
CONFIG = {
    "vocab_size": 151936,
    "draft_vocab_size": 32000,
    "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 17, 32]},
}
SUMMARY = {
    "conversations": 800, "sequences": 812, "tokens": 123456, "supervised_tokens": 65432, "truncated": 3,
    "coverage": 0.98765, "preview": [["a user's own words", False]],
}  # fmt: skip
FINAL = {"step": 31790, "loss": 3.21987, "ce": 1.125, "accept_sampled": 0.625, "accept_by_step": [0.625, 0.5]}
PLACES = {"target": "Qwen/Qwen3-8B", "revision": "b968826d9c46", "folder": "checkpoints/x/full-opd/lr6e-3/draft"}
ODD = "my models/it's | here"


def card(manifest=MANIFEST, config=CONFIG, cache_summary=SUMMARY, final=FINAL, regenerated=True, **places) -> str:
    return model_card(manifest, config, cache_summary, **PLACES | places, final=final, regenerated=regenerated)


def front_matter(text: str) -> dict:
    opening, matter, _ = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(matter)


def commands(text: str) -> list[list[str]]:
    """The words that a shell would make of each command."""
    return [shlex.split(block.replace("\\\n", " ")) for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]


def rows(text: str) -> dict[str, str]:
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return {name.strip(): value.strip() for name, value in cells}


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(inner) for key, inner in reversed(value.items())}
    return value


def test_front_matter_names_the_base_model_and_leaves_the_license_open():
    matter = front_matter(card())
    assert matter["base_model"] == "Qwen/Qwen3-8B"
    assert {"eagle3", "speculative-decoding"} <= set(matter["tags"])
    assert matter["library_name"] == "sglang"
    assert "license" not in matter


def test_a_local_target_is_no_base_model_on_the_hub():
    text = card(target="checkpoints/targets/tiny/model", revision=None)
    assert "base_model" not in front_matter(text)
    assert "# EAGLE-3 draft for checkpoints/targets/tiny/model\n" in text
    assert "revision" not in text


@pytest.mark.parametrize("folder", [PLACES["folder"], ODD])
@pytest.mark.parametrize("target", [PLACES["target"], ODD])
def test_commands_name_target_and_folder_as_a_shell_reads_them(target, folder):
    sglang, vllm = commands(card(target=target, folder=folder))
    assert sglang == [
        "python", "-m", "sglang.launch_server", "--model-path", target, "--speculative-algorithm", "EAGLE3",
        "--speculative-draft-model-path", folder, "--speculative-num-steps", "7", "--speculative-eagle-topk", "1",
        "--speculative-num-draft-tokens", "8",
    ]  # fmt: skip
    assert vllm[:-1] == ["vllm", "serve", target, "--speculative-config"]
    assert json.loads(vllm[-1]) == {"method": "eagle3", "model": folder, "num_speculative_tokens": 7}


def test_a_server_is_to_draft_as_far_as_training_unrolled():
    manifest = MANIFEST | {"settings": MANIFEST["settings"] | {"ttt_length": 4}}
    sglang, vllm = commands(card(manifest))
    assert sglang[sglang.index("--speculative-num-steps") + 1] == "4"
    assert sglang[sglang.index("--speculative-num-draft-tokens") + 1] == "5"
    assert json.loads(vllm[-1])["num_speculative_tokens"] == 4


def test_tables_hold_data_losses_hyperparameters_metrics_and_digests():
    table = rows(card())
    assert (table["sequences"], table["tokens"], table["supervised tokens"]) == ("812", "123,456", "65,432")
    assert (table["cross-entropy"], table["hinge"]) == ("1.125", "0.1")  # of the metrics, which come after the weights
    assert (table["lr"], table["epochs"], table["batch_size"]) == ("`6e-3`", "`3`", "`12`")
    assert (table["betas"], table["max_steps"]) == ("`[0.9, 0.95]`", "`null`")
    assert set(Train().recipe()) <= set(table)
    assert (table["loss, all unrolled steps"], table["acceptance of sampled drafting"]) == ("3.22", "0.625")
    assert (table["target"], table["vocabulary maps"]) == (f"`{'a1' * 32}`", f"`{'c3' * 32}`")
    assert (table["token cache"], table["draft"]) == (f"`{'b2' * 32}`", f"`{'d4' * 32}`")


def test_sentences_hold_the_sizes_the_run_and_what_made_it():
    text = card()
    assert "A one-layer draft of 1,234,567 parameters that proposes tokens for `Qwen/Qwen3-8B`" in text
    assert "(ablation `full-opd`, learning rate 6e-3)" in text
    assert "It knows 32,000 of the target's 151,936 tokens, reads the outputs of target layers 1, 17, 32 " in text
    assert "The draft vocabulary covers 98.77% of the supervised tokens." in text
    assert "31,800 optimizer steps over 9,876,543 tokens." in text
    assert "On the training batch of step 31790," in text
    assert "Acceptance of sampled drafting by unrolled step: 0.625, 0.5." in text
    assert "Target at revision `b968826d9c46`." in text
    assert "SpecForge OPD at commit `5999cbb12345+`; python 3.11.9, torch 2.13.0, transformers 5.23.0.\n" in text


def test_whose_words_were_learned_is_said():
    assert "Every assistant turn was written anew by the target." in card()
    assert "The assistant turns are the data set's own, not the target's." in card(regenerated=False)


def test_a_run_too_short_to_log_has_no_metrics():
    text = card(final={})
    assert "## Metrics" not in text
    assert "## Lineage" in text


def test_every_loss_weight_has_a_name():
    assert {f.name for f in fields(LossWeights)} <= set(TERMS)
    weights = {f.name: 0.5 for f in fields(LossWeights)}
    table = rows(card(MANIFEST | {"run": MANIFEST["run"] | {"weights": weights}}, final={}))
    assert [table[TERMS[name]] for name in weights] == ["0.5"] * len(weights)


def test_equal_inputs_give_equal_bytes_whatever_the_order_of_keys():
    assert card(reversed_keys(MANIFEST), reversed_keys(CONFIG), reversed_keys(SUMMARY), reversed_keys(FINAL)) == card()


def test_inputs_are_left_as_they_were():
    inputs = (MANIFEST, CONFIG, SUMMARY, FINAL)
    before = deepcopy(inputs)
    card()
    assert inputs == before


def test_nothing_that_is_not_named_gets_in():
    secret = "/home/alice/hf_secret"
    extra = {"token": secret, "wandb": {"api_key": secret}, secret: secret}
    inner = {name: MANIFEST[name] | extra for name in ("run", "settings", "inputs", "versions")}
    inner["run"] |= {"weights": MANIFEST["run"]["weights"] | extra}
    eagle = CONFIG["eagle_config"] | extra
    text = card(
        MANIFEST | inner | extra, CONFIG | extra | {"eagle_config": eagle, "_name_or_path": secret}, SUMMARY | extra,
        FINAL | extra,
    )  # fmt: skip
    assert text == card()
    assert "/home/" not in text
    assert "a user's own words" not in text
