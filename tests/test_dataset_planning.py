"""What planning says of a data set: one that is missing, and one whose name another has."""

from pathlib import Path

import pytest
from workspace import CHATS, make_workspace, plan, snakemake

from specforge.errors import UserError
from specforge.files import write_json
from specforge.sources import check_source, source_input, source_version

SUMMARY = "datasets/chats_prep.json"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "chats.json").write_text(folder)
    return tmp_path


def test_a_name_is_free_until_another_source_has_it(here):
    check_source("one/chats.json", None, SUMMARY)
    write_json(Path(SUMMARY), {"source": "one/chats.json"})
    check_source("one/chats.json", None, SUMMARY)
    check_source(str(here / "one" / "chats.json"), None, SUMMARY)
    with pytest.raises(UserError, match=r"two/chats\.json would take the place of one/chats\.json.*delete datasets/"):
        check_source("two/chats.json", None, SUMMARY)


def test_a_summary_from_before_names_were_checked_does_not_count(here):
    write_json(Path(SUMMARY), {"dataset": "one/chats.json"})
    check_source("two/chats.json", None, SUMMARY)


def test_a_file_is_an_input_by_content_and_the_hub_is_none(here):
    assert source_input("one/chats.json") == ["one/chats.json"]
    assert source_input("opc") == source_input("synthetic") == source_input("some/set") == []
    assert source_version("one/chats.json") != source_version("two/chats.json")
    assert source_version("some/set") == "some/set"


@pytest.mark.pipeline
def test_planning_refuses_what_no_step_could_read(tmp_path):
    workspace = make_workspace(tmp_path / "workspace")
    for dataset, words in (
        ("missing.json", "config: dataset 'missing.json' is no file and no known data set"),
        ("sharegtp", "Did you mean sharegpt"),
        ("opc:users", "opc has no such subset"),
    ):
        result = snakemake(workspace, "-n", settings={"dataset": dataset})
        assert result.returncode
        assert words in result.stdout
        assert "Traceback" not in result.stdout
    write_json(workspace / SUMMARY, {"source": "/elsewhere/chats.json"})
    result = snakemake(workspace, "-n")
    assert f"dataset {CHATS} would take the place of /elsewhere/chats.json" in result.stdout
    assert plan(workspace, settings={"dataset": "opc:realuser_instruct", "dataset_revision": "v1"})
