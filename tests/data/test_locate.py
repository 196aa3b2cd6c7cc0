from pathlib import Path

import pytest

from specforge.data.catalogue import NAMES, SOURCES, SYNTHETIC, HubSource
from specforge.data.locate import locate, source_name
from specforge.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("chats.jsonl", "more.parquet", "notes.csv"):
        Path(name).touch()
    Path("deep").mkdir()
    return tmp_path


def refusal(*dataset):
    with pytest.raises(UserError) as caught:
        locate(*dataset)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.endswith((".", "?"))
    return message


def test_names_files_and_hub_ids_are_found(here):
    assert locate("synthetic") == SYNTHETIC
    assert locate("opc") is SOURCES["opc"]
    assert locate("opc:realuser_instruct").subsets == ("realuser_instruct",)
    assert locate("chats.jsonl") == Path("chats.jsonl")
    assert locate(str(here / "more.parquet")) == here / "more.parquet"
    assert locate("allenai/tulu-3") == HubSource("allenai/tulu-3")
    assert locate("some/set:en") == HubSource("some/set", subsets=("en",))
    assert locate("some/set::train_sft") == HubSource("some/set", split="train_sft")
    assert locate("some/set:en:test") == HubSource("some/set", subsets=("en",), split="test")


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("sharegtp", "Did you mean sharegpt"),
        ("ultra-chat", "Did you mean ultrachat"),
        ("chat.jsonl", r"Did you mean chats\.jsonl"),
        ("/nowhere/x.json", "is no file and no known data set"),
        ("data/x.json", "is no file"),
        ("deep/chats", "is no file"),
        ("a/b/c", "is no file"),
        ("some/set:a:b:c", "is no file"),
        ("deep", r"deep is a folder; name one file in it"),
        ("notes.csv", r"must be a \.json, \.jsonl or \.parquet file"),
        ("opc:realuser", r"no such subset; write opc, or opc:filtered_infinity_instruct, .*opc:realuser_instruct\."),
        ("sharegpt:a", r"no such subset; write sharegpt\."),
    ],
)
def test_all_else_is_refused_with_what_would_be_right(dataset, words):
    with pytest.raises(UserError, match=words):
        locate(dataset)
    refusal(dataset)


def test_an_unknown_name_is_told_all_names():
    message = refusal("my-chats")
    assert all(name in message for name in NAMES)


@pytest.mark.parametrize("dataset", ["synthetic", "chats.jsonl"])
def test_only_the_hub_has_revisions(dataset):
    assert "dataset_revision is 'v1', but" in refusal(dataset, "v1")
    assert locate("opc", "v1")


def test_a_file_has_one_name_however_it_is_written(here):
    spellings = ("chats.jsonl", "./chats.jsonl", here / "chats.jsonl")
    assert {source_name(str(spelling)) for spelling in spellings} == {"chats.jsonl"}
    outside = here.parent / f"{here.name}.json"
    outside.touch()
    assert source_name(f"../{here.name}.json") == source_name(str(outside)) == outside.as_posix()
    assert source_name("opc") == "opc"
