import io
import json
from itertools import islice
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow
import pytest
from pyarrow import parquet

from specforge.data.catalogue import HubSource, pair
from specforge.data.sources import _hub_rows, read_source
from specforge.errors import UserError

COMMIT = "8b0048ad6ae8c22f46a78c15559dec98feef5539"
CHATS = [{"id": str(n), "conversations": [{"from": "human", "value": "x" * 500}]} for n in range(20_000)]


class CountedBytes(io.BytesIO):
    """A file that knows how much of it was read."""

    def __init__(self, data):
        super().__init__(data)
        self.taken = 0

    def read(self, size=-1):
        data = super().read(size)
        self.taken += len(data)
        return data

    read1 = read


@pytest.fixture
def hub(monkeypatch):
    """A hub with one commit; `calls` notes what was asked of it, `file` is the one file that is read in blocks."""
    hub = SimpleNamespace(calls=[], rows=[{"instruction": "Ask", "output": "Answer"}], file=None)

    def dataset_info(_, repository, revision=None):
        hub.calls.append(("info", repository, revision))
        return SimpleNamespace(sha=COMMIT)

    def load_dataset(*args, **kwargs):
        hub.calls.append(("load", *args, kwargs))
        return iter(hub.rows)

    def open_file(_, path, mode, revision=None):
        hub.calls.append(("open", path, revision))
        hub.file = CountedBytes(json.dumps(CHATS).encode())
        return hub.file

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub.HfFileSystem, "open", open_file)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return hub


def test_a_revision_is_asked_for_and_its_commit_read(hub):
    source = read_source("ultrachat", None, 0, "v1")
    assert (source.commit, source.needs_image) == (COMMIT, False)
    list(source.rows)
    assert hub.calls == [
        ("info", "HuggingFaceH4/ultrachat_200k", "v1"),
        (
            "load", "HuggingFaceH4/ultrachat_200k", None,
            {"split": "train_sft", "revision": COMMIT, "streaming": True},
        ),
    ]  # fmt: skip


def test_subsets_follow_one_another_and_the_next_is_opened_when_it_is_due(hub):
    rows = read_source("opc", None, 0).rows
    assert next(rows).value["messages"][0]["content"] == "Ask"
    assert [call[2] for call in hub.calls if call[0] == "load"] == ["filtered_infinity_instruct"]
    assert [row.line for row in rows] == [2, 3]
    assert [call[2] for call in hub.calls if call[0] == "load"] == [
        "filtered_infinity_instruct", "largescale_diverse_instruct", "realuser_instruct",
    ]  # fmt: skip
    hub.calls.clear()
    assert len(list(read_source("opc:realuser_instruct", None, 0).rows)) == 1
    assert [call[2] for call in hub.calls if call[0] == "load"] == ["realuser_instruct"]


def test_any_hub_id_is_read_with_its_subset_and_split(hub):
    assert [row.value for row in read_source("some/set:en:test", None, 0).rows] == hub.rows
    assert hub.calls[1] == ("load", "some/set", "en", {"split": "test", "revision": COMMIT, "streaming": True})


def test_no_more_of_an_array_is_downloaded_than_was_drawn(hub):
    source = read_source("sharegpt", 10, 0)
    assert hub.file is None
    assert [row.value for row in islice(source.rows, 10)] == CHATS[:10]
    source.rows.close()
    assert hub.calls[1] == (
        "open",
        "datasets/Aeala/ShareGPT_Vicuna_unfiltered/ShareGPT_V4.3_unfiltered_cleaned_split.json",
        COMMIT,
    )
    assert hub.file.closed
    assert hub.file.taken < 2 << 20 < 10 << 20 < len(json.dumps(CHATS))


def test_image_sets_say_that_each_row_needs_one(hub):
    assert read_source("sharegpt4v", None, 0).needs_image
    assert read_source("allava4v", None, 0).needs_image


def test_offline_the_cache_is_read_and_no_commit_is_known(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "cached.json"
    cached.write_text(json.dumps(CHATS[:3]))
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **how: asked.append(how) or str(cached))
    source = read_source("sharegpt", None, 0, "v1")
    assert source.commit is None
    assert [row.value for row in source.rows] == CHATS[:3]
    assert asked[0] == {"repo_type": "dataset", "revision": "v1"}
    list(read_source("eaglechat", None, 0).rows)
    assert hub.calls == [("load", "zhaode/EagleChat", None, {"split": "train", "revision": None, "streaming": False})]


def test_a_hub_that_breaks_off_is_the_users_to_mend(hub, monkeypatch):
    def rows(*args, **how):
        yield {"id": "a"}
        raise ConnectionError("gone\naway")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    stream = read_source("eaglechat", None, 0).rows
    assert next(stream).value == {"id": "a"}
    with pytest.raises(UserError, match=r"'eaglechat' cannot be read from the hub \(ConnectionError: gone away\)"):
        next(stream)


def test_a_repository_that_is_not_there_is_told_before_any_row(hub, monkeypatch):
    def missing(*args, **how):
        raise ValueError("404")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", missing)
    with pytest.raises(UserError, match=r"'some/set' cannot be read from the hub \(ValueError: 404\); check its name"):
        read_source("some/set", None, 0)


def test_the_real_client_streams_shards_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for shard in range(2):
        rows = [{"instruction": f"{shard}-{n}", "output": "Yes."} for n in range(3)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"train-{shard}.parquet")
    source = HubSource(str(tmp_path), row=pair("instruction", "output"))
    values = [row.value["messages"][0]["content"] for row in _hub_rows("local", source, None)]
    assert values == [f"{shard}-{n}" for shard in range(2) for n in range(3)]


def test_rows_of_the_client_lose_the_nulls_that_arrow_put_into_their_tools(hub):
    hub.rows = [{"id": None, "tools": [{"name": "f", "parameters": {"a": 1, "b": None}}]}]
    (row,) = read_source("some/set", None, 0).rows
    assert row.value == {"id": None, "tools": [{"name": "f", "parameters": {"a": 1}}]}


def test_a_bad_row_of_an_array_on_the_hub_keeps_its_error(hub, monkeypatch):
    text = b'[{"id": "a"}, {"id": NaN}, {"id": "b"}]'
    monkeypatch.setattr(huggingface_hub.HfFileSystem, "open", lambda *_, **how: io.BytesIO(text))
    first, bad, last = read_source("sharegpt", None, 0).rows
    assert (first.value, last.value, last.line) == ({"id": "a"}, {"id": "b"}, 3)
    assert (bad.value, bad.error) == ('{"id": NaN}', "the row is not JSON (NaN is not a JSON number).")


def test_the_generator_needs_a_size():
    with pytest.raises(UserError, match="sample_size"):
        read_source("synthetic", None, 0)
    assert next(read_source("synthetic", 3, 5).rows).value["id"] == "synthetic-5-0"
