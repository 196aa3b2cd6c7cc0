import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from specforge.config.steps import Prepare
from specforge.data.records import Limits, parse_row
from specforge.data.split import Split
from specforge.errors import UserError
from specforge.files import read_json, read_jsonl, sha256_file
from specforge.steps.prep_dataset import prep_dataset

ANY = Limits(64, 10_000)
REAL = Path("/work/shared/data/sharegpt_sample.json")


def chat(*texts, **keys):
    roles = ("user", "assistant")
    return {
        **keys,
        "conversations": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)],
    }


GOOD = [chat(f"What is the answer to question {n}?", f"Answer {n}.", id=f"row-{n}") for n in range(40)]
BAD = {
    "empty_turn": chat("Hi?", "", id="e"),
    "duplicate_id": chat("Other?", "Yes.", id="row-0"),
    "duplicate_conversation": chat("What is the answer to question 1?", "Answer 1.", id="again"),
    "no_known_form": {"text": "x" * 2000},
    "bad_characters": chat("Hi\ud800?", "Hello.", id="s"),
}


@pytest.fixture
def prep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(rows=None, *, dataset="rows.jsonl", sample_size=None, split_eval=True, seed=0, **options):
        if rows is not None:
            lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
            Path("rows.jsonl").write_text("\n".join(lines) + "\n")
        return prep_dataset(
            dataset=dataset,
            sample_size=sample_size,
            split_eval=split_eval,
            seed=seed,
            settings=Prepare(**{"test_share": 0.2, **options}).model_dump(mode="json"),
            train="out/train.jsonl",
            test="out/test.jsonl" if split_eval else None,
            rejected="out/rejected.jsonl",
            summary="out/summary.json",
        )

    return run


def rows_of(name):
    return list(read_jsonl(Path(f"out/{name}.jsonl")))


def test_every_row_is_kept_or_rejected_with_its_reason(prep):
    summary = prep([*GOOD, *BAD.values(), "{oops", "", "[1]"], max_rejected_share=0.5)
    reasons = [*BAD, "unreadable", "not_an_object"]
    assert summary["rejected_by_reason"] == dict.fromkeys(sorted(reasons), 1)
    assert (summary["read"], summary["kept"], summary["rejected"]) == (47, 40, 7)
    assert summary["train"] + summary["test"] == 40
    assert (summary["train"], summary["test"]) == (len(rows_of("train")), len(rows_of("test")))
    rejected = rows_of("rejected")
    assert [(row["line"], row["reason"]) for row in rejected] == [
        *enumerate(BAD, 41), (46, "unreadable"), (48, "not_an_object"),
    ]  # fmt: skip
    assert [row["row"] for row in rejected] == list(range(41, 48))
    assert all(row["detail"] and 0 < len(row["raw"]) <= 500 for row in rejected)
    assert summary == read_json(Path("out/summary.json"))
    assert summary["sha256"] == {side: sha256_file(Path(f"out/{side}.jsonl")) for side in ("train", "test")}
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "rejected.jsonl", "summary.json", "test.jsonl", "train.jsonl",
    ]  # fmt: skip


def test_equal_input_gives_equal_bytes(prep):
    first = prep(dataset="synthetic", sample_size=80)
    assert prep(dataset="synthetic", sample_size=80) == first
    assert prep(dataset="synthetic", sample_size=80, seed=1)["sha256"] != first["sha256"]


def test_the_sample_is_the_first_usable_rows(prep):
    summary = prep([BAD["empty_turn"], *GOOD], sample_size=10, split_eval=False, max_rejected_share=0.5)
    assert [row["id"] for row in rows_of("train")] == [f"row-{n}" for n in range(10)]
    assert (summary["read"], summary["kept"], summary["rejected"]) == (11, 10, 1)
    assert (summary["test"], summary["sha256"]["test"]) == (0, None)
    assert not Path("out/test.jsonl").exists()


def test_a_short_source_is_noted(prep, caplog):
    summary = prep(GOOD, sample_size=50)
    assert summary["notes"] == {"fewer_than_sample_size": 10}
    assert "only 40 are usable" in caplog.text


def test_what_is_left_out_is_noted(prep):
    summary = prep([*GOOD, chat("Hi?", "Hello.", "And?", id="cut", lang="en")])
    assert summary["notes"] == {"unanswered_last_turns_cut": 1, "rows_with_unused_keys": 1}


def test_no_test_prompt_is_in_training(prep):
    ask = "What is the answer to question"
    rows = [chat(f"{ask} {n % 30}", f"Answer {n}.", f"{ask.upper()} {n % 29}?", "Yes.") for n in range(120)]
    rows += [chat(f"Only {n}?", "Yes.") for n in range(20)]
    summary = prep(rows, max_leaked_share=1.0)
    said = {
        turn["content"].casefold().strip("?")
        for row in rows_of("train") for turn in row["conversations"] if turn["role"] == "user"
    }  # fmt: skip
    assert not {row["conversations"][0]["content"].casefold().strip("?") for row in rows_of("test")} & said
    assert summary["rejected_by_reason"]["held_out_prompt"] > 0
    assert summary["train"] + summary["test"] == summary["kept"] == 140 - summary["rejected"]


def test_a_row_that_says_a_held_out_prompt_is_listed_with_its_line(prep):
    prep(GOOD)
    held, train = rows_of("test"), rows_of("train")
    ask, leaked = (side[0]["conversations"][0]["content"] for side in (train, held))
    leaking = chat(ask, "Yes.", leaked, "No.", id="leaking")
    summary = prep([leaking, *GOOD])
    assert (summary["read"], summary["kept"], summary["rejected_by_reason"]) == (41, 40, {"held_out_prompt": 1})
    assert (rows_of("test"), rows_of("train")) == (held, train)
    (rejected,) = rows_of("rejected")
    assert (rejected["row"], rejected["line"], rejected["reason"]) == (1, 1, "held_out_prompt")
    assert json.loads(rejected["raw"]) == leaking
    assert repr(held[0]["id"]) in rejected["detail"]


def test_leaks_do_not_count_as_unusable_rows(prep):
    prep(GOOD)
    prompt = rows_of("test")[0]["conversations"][0]["content"]
    first = rows_of("train")[0]["conversations"][0]["content"]
    leaking = [chat(first, f"Yes {n}.", prompt, "No.") for n in range(30)]
    summary = prep([*GOOD, *leaking], max_rejected_share=0.0, max_leaked_share=0.5)
    assert summary["rejected_by_reason"] == {"held_out_prompt": 30}
    shown = r"30 of \d+ training conversations .*max_leaked_share, 0\.2; .* listed in out/\.rejected\.jsonl"
    with pytest.raises(UserError, match=shown):
        prep([*GOOD, *leaking])
    assert len(list(read_jsonl(Path("out/.rejected.jsonl")))) == 30


def test_a_short_turn_that_is_a_held_out_prompt_elsewhere_costs_nothing(prep):
    rows = [chat(f"Question {n}?", "Yes.", "continue", "And so on.") for n in range(60)]
    seed = next(seed for seed in range(99) if Split(0.2, seed, 0.7).add(parse_row(chat("continue", "1"), ANY).record))
    summary = prep([*rows, chat("Continue!", "What?")], seed=seed)
    assert (summary["rejected"], summary["kept"]) == (0, 61)
    assert "Continue!" in {row["conversations"][0]["content"] for row in rows_of("test")}


def test_where_the_rows_came_from_is_noted(prep, tmp_path):
    summary = prep(GOOD, dataset=str(tmp_path / "rows.jsonl"))
    assert (summary["source"], summary["revision"], summary["commit"]) == ("rows.jsonl", None, None)
    assert prep(dataset="synthetic", sample_size=80)["source"] == "synthetic"


def test_an_image_folder_must_exist_and_its_images_are_looked_for(prep, caplog):
    rows = [row | {"image": f"pictures/{n % 2}.jpg"} for n, row in enumerate(GOOD)]
    shown = "answers_about_images_trained_on_as_text"
    assert prep(rows)["notes"] == {"images_not_looked_for": 40, shown: 40}
    assert "40 conversations are about images; answers about images are trained on as text; the" in caplog.text
    assert rows_of("train")[0]["image"].startswith("pictures/")
    with pytest.raises(UserError, match=r"prepare\.image_folder: elsewhere is not a folder"):
        prep(rows, image_folder="elsewhere")
    Path("pictures").mkdir()
    Path("pictures/1.jpg").touch()
    summary = prep(rows, image_folder=".", max_rejected_share=0.5)
    assert (summary["rejected_by_reason"], summary["notes"]) == ({"image_missing": 20}, {shown: 20})


def test_parquet_gives_what_json_lines_give(prep):
    expected = prep(GOOD)
    parquet.write_table(pyarrow.Table.from_pylist(GOOD), "rows.parquet")
    assert prep(dataset="rows.parquet")["sha256"] == expected["sha256"]


@pytest.mark.skipif(not REAL.is_file(), reason="needs the sample of real conversations")
def test_real_conversations_are_all_kept(prep):
    summary = prep(dataset=str(REAL), test_share=0.06)
    assert (summary["read"], summary["train"], summary["test"], summary["notes"]) == (210, 198, 12, {})


def test_too_many_rejections_stop_the_step_after_they_are_listed(prep):
    with pytest.raises(UserError, match=r"5 of 45 rows are unusable .*line 41: .*max_rejected_share, 0\.05"):
        prep([*GOOD, *BAD.values()])
    assert len(rows_of("rejected")) == 5
    assert sorted(p.name for p in Path("out").iterdir()) == [".rejected.jsonl", "rejected.jsonl"]
    assert (
        Path("out/.rejected.jsonl").read_text() == Path("out/rejected.jsonl").read_text()
    )  # outlives Snakemake's clean-up


def test_nothing_usable_is_an_error_at_any_share(prep):
    with pytest.raises(UserError, match="so none is left"):
        prep([BAD["empty_turn"]], max_rejected_share=1.0)
    with pytest.raises(UserError, match="holds no rows"):
        prep([])


@pytest.mark.parametrize(("share", "side"), [(0.0, "test"), (1.0, "train")])
def test_an_empty_side_is_an_error(prep, share, side):
    with pytest.raises(
        UserError, match=f"the {side} side of 40 conversations is empty at prepare.test_share {share:g}"
    ):
        prep(GOOD, test_share=share)


def test_a_row_nested_too_deeply_is_rejected(prep):
    tools = [{"a": 1}]
    deep = '{"id": "d", "tools": [{"a": ' + "[" * 900 + "]" * 900 + "}], "
    turns = json.dumps({"conversations": GOOD[0]["conversations"]})[1:]
    summary = prep([*GOOD[1:], chat("Tools?", "Yes.", tools=tools), deep + turns], max_rejected_share=0.5)
    assert summary["read"] == summary["kept"] + summary["rejected"] == 41
