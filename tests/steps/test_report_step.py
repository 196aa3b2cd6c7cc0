import csv
import html
import json
import re
from itertools import product

import numpy as np
import pytest

from specforge.errors import UserError
from specforge.steps.report import FIGURES, report

WEIGHTS = {
    "baseline": {"lambda_ce": 1.0, "lambda_rkl": 0.0, "beta_hinge": 0.0},
    "rkl-only": {"lambda_ce": 0.0, "lambda_rkl": 1.0, "beta_hinge": 0.0},
    "mixed": {"lambda_ce": 0.5, "lambda_rkl": 0.5, "beta_hinge": 0.0},
    "full-opd": {"lambda_ce": 0.4, "lambda_rkl": 0.5, "beta_hinge": 0.1},
}
QUALITY = {"baseline": 4.2, "rkl-only": 3.4, "mixed": 4.25, "full-opd": 4.3}
RATES = {"3e-3": -0.3, "6e-3": 0.0, "1e-2": -0.12}
HOSTILE = "<script>alert(1)</script>&$x_1$"


def scores(rng, quality, hardness):
    tokens = np.full(len(hardness), 64)
    rounds = np.maximum(8, np.round(64 / np.clip(quality + hardness + rng.normal(0, 0.12, len(hardness)), 1.1, 8)))
    mean = float(tokens.sum() / rounds.sum())
    rate = min(0.97, 0.55 + quality / 12)
    rates = [round(rate * (1 - 0.02 * i), 4) for i in range(6)] + [None if quality < 3.2 else 0.7]
    return {
        "accept_length": {"mean": mean, "low": mean - 0.21, "high": mean + 0.22},
        "accept_rate_by_position": rates,
        "speedup": {"mean": mean / 2.8, "low": mean / 2.9, "high": mean / 2.7},
        "prompts": [{"id": f"p{i}", "tokens": 64, "rounds": int(r)} for i, r in enumerate(rounds)],
    }


def evaluation(ablation, lr, quality, prompts=48, temperatures=("0", "1")):
    rng = np.random.default_rng([len(ablation), int(float(lr) * 1e5)])
    hardness = np.random.default_rng(0).normal(0, 0.9, prompts)
    mismatches = [{"prompt": "p7", "position": 12, "logit_gap": 0.0004}] if lr == "1e-2" else []
    return {
        "run": {"ablation": ablation, "lr": lr},
        "target": "tiny-synthetic",
        "num_draft_tokens": 7,
        "max_new_tokens": 64,
        "dtype": "float32",
        "seed": 0,
        "num_prompts": prompts,
        "lossless": {"checked": prompts, "mismatches": mismatches},
        "temperatures": {t: scores(rng, quality - 0.6 * float(t), hardness) for t in temperatures},
    }


def manifest(ablation, lr):
    return {
        "run": {"ablation": ablation, "lr": lr, "weights": WEIGHTS.get(ablation, WEIGHTS["mixed"])},
        "settings": {"batch_size": 16},
        "inputs": {"target": "9f2c" * 16, "cache": "81ab" * 16},
        "versions": {"python": "3.11.2", "torch": "2.9.1", "transformers": "5.5.0"},
        "commit": "4f0c2d1e9b7a",
        "steps": 240,
        "tokens": 361234,
        "seconds": 81.3,
        "draft_parameters": 412_000,
        "final": {"loss": 2.1},
    }


def metrics(quality):
    rng = np.random.default_rng(int(quality * 100))
    for step in range(10, 250, 10):
        fall = float(np.exp(-step / 70))
        yield {
            "step": step,
            "loss": 7.2 - quality + 5 * fall + float(rng.normal(0, 0.06)),
            "acceptance": 0.2 * quality * (1 - fall) + float(rng.normal(0, 0.008)),
            "lr": 0.003,
        }


PREP = {
    "dataset": "synthetic",
    "read": 1262,
    "kept": 1200,
    "train": 1128,
    "test": 72,
    "rejected": 62,
    "rejected_by_reason": {"no assistant turn": 31, "empty message": 22, "too many turns": 9},
    "notes": {"fewer_than_sample_size": 0, "dropped_keys": 14},
}
REGENERATED = {
    "conversations": 1128,
    "regenerated": 1121,
    "failed": 7,
    "ended_early": 3,
    "turns": 1894,
    "finish_reasons": {"stop": 1790, "length": 104},
    "ended_early_by_reason": {"no_call": 2, "empty": 1},
}
TALK = "<|im_start|>user\nName three primes below ten.<|im_end|>\n<|im_start|>assistant\n"
CACHE = {
    "conversations": 1121,
    "sequences": 1118,
    "tokens": 120411,
    "supervised_tokens": 61892,
    "truncated": 3,
    "empty": 3,
    "draft_vocab_size": 1024,
    "target_vocab_size": 2048,
    "coverage": 0.998,
    "longest": [512, 512, 512, 498, 477, 470, 466, 460, 451, 449],
    "preview": [
        [TALK, False],
        *[[w, True] for w in ("Two", ",", " three", " and", " seven", ".", "<|im_end|>")],
    ],
    "chat_template": "tokenizer",
    "tool_calls_not_learnt": 4,
    "prompts_checked": 1894,
    "prompts_of_another_length": 13,
}
CONFIG = {
    "target_model": "tiny",
    "dataset": "synthetic",
    "ablations": ("all",),
    "ablation_catalogue": {name: {**weights, "lrs": tuple(RATES)} for name, weights in WEIGHTS.items()},
    "evaluate": {"num_prompts": 48, "temperatures": (0.0, 1.0), "bootstrap_samples": 1000, "seed": 0},
}


def inputs(folder, runs=None, **options):
    """The arguments of report() for files written under `folder`."""
    runs = runs or list(product(WEIGHTS, RATES))
    folder.mkdir(parents=True, exist_ok=True)

    def put(name, text):
        (folder / name).write_text(text, encoding="utf-8")
        return str(folder / name)

    found = {"evaluations": [], "manifests": [], "metrics": []}
    for number, (ablation, lr) in enumerate(runs):
        quality = QUALITY.get(ablation, 4.0) + RATES.get(lr, -0.2)
        found["evaluations"].append(
            put(f"{number}.eval.json", json.dumps(evaluation(ablation, lr, quality, **options)))
        )
        found["manifests"].append(put(f"{number}.manifest.json", json.dumps(manifest(ablation, lr))))
        lines = "".join(json.dumps(row) + "\n" for row in metrics(quality))
        found["metrics"].append(put(f"{number}.metrics.jsonl", lines))
    return {
        **found,
        "prep": put("prep.json", json.dumps(PREP)),
        "regenerate": put("regenerate.json", json.dumps(REGENERATED)),
        "cache": put("cache.json", json.dumps(CACHE)),
        "config": CONFIG,
        "html": str(folder / "out" / "report.html"),
        "csv": str(folder / "out" / "summary.csv"),
        "figures": {name: str(folder / "out" / f"{name}.svg") for name in FIGURES},
    }


def change(path, **changes):
    """Sets top-level keys of a JSON file; None deletes."""
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        value = json.load(file) | changes
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump({key: item for key, item in value.items() if item is not None}, file)


def outputs(folder):
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, report(**inputs(folder))


def test_writes_page_table_and_figures(made):
    folder, result = made
    assert set(outputs(folder)) == {"report.html", "summary.csv", *(f"{name}.svg" for name in FIGURES)}
    assert len(result["ranking"]) == 12
    text = re.sub(r"<[^>]*>", "", outputs(folder)["report.html"].decode())
    assert all(html.escape(sentence, quote=False) in text.replace("&#39;", "'") for sentence in result["conclusion"])


def test_what_the_data_lost_is_on_the_page(made):
    text = outputs(made[0])["report.html"].decode()
    for said in (
        "Why conversations ended early",
        "no_call",
        "13 of .{5,8} prompts have another",
        "4 turns of tool calls",
    ):
        assert re.search(said, text)


def test_equal_inputs_give_equal_bytes(made, tmp_path):
    report(**inputs(tmp_path))
    assert outputs(tmp_path) == outputs(made[0])


def test_csv_has_a_row_a_run_in_ranking_order(made):
    folder, result = made
    rows = list(csv.DictReader(outputs(folder)["summary.csv"].decode().splitlines()))
    assert [f"{row['ablation']} lr{row['lr']}" for row in rows] == result["ranking"]
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, 13)]
    assert set(rows[0]) >= {
        "lambda_ce",
        "lambda_rkl",
        "beta_hinge",
        "accept_length_T0",
        "accept_length_T0_low",
        "accept_length_T0_high",
        "diff_to_best_T1_low",
        "speedup_T1",
        "standing_T0",
        "accept_rate_T1_pos7",
        "lossless_mismatches",
        "final_loss",
    }
    assert rows[0]["standing_T0"] == "best"
    assert rows[0]["diff_to_best_T0"] == ""
    lengths = [float(row["accept_length_T0"]) for row in rows]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("runs", "options"),
    [
        ([("baseline", "3e-3")], {}),
        ([("baseline", "3e-3"), ("mine", "6e-3")], {"prompts": 4}),
        ([("baseline", "3e-3"), ("baseline", "1e-2")], {"temperatures": ("0.7",)}),
        ([(f"own-{n}", "1e-4") for n in range(10)], {"temperatures": ("0", "0.3", "0.6", "1")}),
    ],
)
def test_any_shape_of_experiment(tmp_path, runs, options):
    result = report(**inputs(tmp_path, runs, **options))
    assert sorted(result["ranking"]) == sorted(f"{ablation} lr{lr}" for ablation, lr in runs)


def test_names_are_escaped_everywhere(tmp_path):
    arguments = inputs(tmp_path, [(HOSTILE, "3e-3"), ("baseline", "3e-3")])
    change(arguments["prep"], rejected_by_reason={HOSTILE: 3}, notes={HOSTILE: HOSTILE}, dataset=HOSTILE)
    change(arguments["cache"], preview=[[HOSTILE, True]], chat_template=HOSTILE)
    report(**arguments | {"config": {"dataset": HOSTILE}})
    for name, content in outputs(tmp_path).items():
        if name != "summary.csv":
            assert b"<script" not in content, name
    assert b"&lt;script&gt;" in outputs(tmp_path)["report.html"]


@pytest.mark.parametrize("said", [{**dict.fromkeys(REGENERATED), "skipped": True}, {"settings": False}])
def test_regeneration_may_be_off(tmp_path, said):
    arguments = inputs(tmp_path, [("baseline", "3e-3")])
    change(arguments["regenerate"], **said)
    report(**arguments)
    assert "Regeneration was off" in outputs(tmp_path)["report.html"].decode()


def test_training_without_a_logged_line(tmp_path):
    arguments = inputs(tmp_path, [("baseline", "3e-3")])
    change(arguments["manifests"][0], final=None, seconds=None)
    (tmp_path / "0.metrics.jsonl").write_text("")
    report(**arguments)
    assert "Tokens a second" not in outputs(tmp_path)["report.html"].decode()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("1.eval.json", {"lossless": None}, r"1\.eval\.json: lossless is missing"),
        ("1.eval.json", {"num_prompts": "many"}, r"1\.eval\.json: num_prompts is wrong"),
        ("1.eval.json", {"target": "other"}, r"1\.eval\.json was evaluated with target 'other'"),
        ("1.eval.json", {"temperatures": {}}, r"1\.eval\.json: temperatures is empty"),
        ("1.eval.json", {"run": {"ablation": "baseline", "lr": "fast"}}, r"1\.eval\.json: run\.lr .*'fast'"),
        (
            "1.eval.json",
            {"run": {"ablation": "baseline", "lr": "3e-3"}},
            r"1\.eval\.json and .* both evaluate",
        ),
        ("1.eval.json", {"run": {"ablation": "baseline", "lr": "9e-3"}}, "no manifest of that run"),
        ("1.manifest.json", {"steps": None}, r"1\.manifest\.json: steps is missing"),
        ("prep.json", {"kept": None}, r"prep\.json: kept is missing"),
        ("cache.json", {"preview": [["a"]]}, r"cache\.json: preview\.0\.1 is missing"),
        ("regenerate.json", {"turns": None}, r"regenerate\.json: turns is missing"),
    ],
)
def test_bad_input_is_one_sentence_naming_the_file(tmp_path, file, changes, message):
    arguments = inputs(tmp_path, [("baseline", "3e-3"), ("baseline", "6e-3")])
    change(tmp_path / file, **changes)
    with pytest.raises(UserError, match=message):
        report(**arguments)


def test_other_prompts_cannot_be_paired(tmp_path):
    arguments = inputs(tmp_path, [("baseline", "3e-3"), ("baseline", "6e-3")])
    other = evaluation("baseline", "6e-3", 4.0)
    other["temperatures"]["1"]["prompts"][0]["id"] = "stranger"
    change(arguments["evaluations"][1], **other)
    with pytest.raises(UserError, match="differ in their prompts at T=1"):
        report(**arguments)


def test_metrics_line_without_step(tmp_path):
    arguments = inputs(tmp_path, [("baseline", "3e-3")])
    (tmp_path / "0.metrics.jsonl").write_text('{"loss": 2.0}\n')
    with pytest.raises(UserError, match=r"0\.metrics\.jsonl, line 1 has no step"):
        report(**arguments)


def test_unknown_figure_and_missing_metrics(tmp_path):
    arguments = inputs(tmp_path, [("baseline", "3e-3")])
    with pytest.raises(UserError, match="no figure 'pie'"):
        report(**arguments | {"figures": {"pie": "pie.svg"}})
    with pytest.raises(UserError, match="1 manifests but 0 metrics"):
        report(**arguments | {"metrics": []})
    with pytest.raises(UserError, match="no evaluation"):
        report(**arguments | {"evaluations": []})
