"""Datasets on the hub, in its cache, and in local folders: their rows and commits."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before `datasets` is imported

from tests.support.errors import raises

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.hub import HubUnreachable, resolve_commit
from tunesmith.data.sources import cache_datasets, digest_sources, read_rows, resolve_commits, sources_available
from tunesmith.recipe.data_source import HubSource

COMMIT = "a" * 40


def hub(name: str, **other: Any) -> HubSource:
    return HubSource(hub=name, **other)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Create a local folder with the layout of a dataset on the hub."""
    folder = tmp_path / "me" / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train-00000.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (folder / "data" / "test-00000.jsonl").write_text('{"a": 3}\n')
    return folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the dataset `me/cached` at COMMIT into the cache of `datasets`."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "cache" / "me___cached" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    info = datasets.DatasetInfo(
        features=datasets.Features({"a": datasets.Value("int64")}),
        config_name="default",
        dataset_name="cached",
        splits=[{"name": "train", "num_examples": 2, "dataset_name": "cached"}],
    )
    info.write_to_directory(str(folder))
    with ArrowWriter(path=str(folder / "cached-train.arrow"), features=info.features) as writer:
        for n in (1, 2):
            writer.write({"a": n})
        writer.finalize()


def test_local_dataset_is_read_by_split(tmp_path: Path, dataset: Path) -> None:
    result = list(read_rows(hub("me/set"), folder=tmp_path))
    assert [(row.where, row.values) for row in result] == [
        ("me/set[train] row 1", {"a": 1}),
        ("me/set[train] row 2", {"a": 2}),
    ]
    assert [row.values for row in read_rows(hub("me/set", split="test"), folder=tmp_path)] == [{"a": 3}]


@pytest.mark.parametrize(
    ("other", "code", "named", "where"),
    [
        ({"split": "dev"}, "unknown-split", "train, test", "me/set[dev]"),
        ({"config": "other"}, "unreadable", "'default'", "me/set[train]"),
    ],
)
def test_unknown_split_and_config_errors_list_the_known_ones(
    tmp_path: Path, dataset: Path, other: dict[str, str], code: str, named: str, where: str
) -> None:
    with raises(DataError, code, named, where=where):
        list(read_rows(hub("me/set", **other), folder=tmp_path))


def test_revision_of_a_local_folder_is_refused(tmp_path: Path, dataset: Path) -> None:
    with raises(RecipeError, "no-effect", "`revision`", where="me/set"):
        list(read_rows(hub("me/set", revision="main"), folder=tmp_path))


def test_loading_script_is_never_run(tmp_path: Path, dataset: Path) -> None:
    canary = tmp_path / "canary"
    (dataset / "set.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with raises(DataError, "unreadable", "script"):
        list(read_rows(hub("me/set"), folder=tmp_path))
    assert not canary.exists()


def test_local_dataset_without_data_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "me" / "none").mkdir(parents=True)
    with raises(DataError, "unreadable", "data files"):
        list(read_rows(hub("me/none"), folder=tmp_path))


def test_hub_name_does_not_match_a_folder_in_the_working_directory(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with raises(HubUnreachable, "source-unreachable", "HF_HUB_OFFLINE"):
        list(read_rows(hub("me/set"), folder=tmp_path / "recipes"))


def test_offline_makes_no_network_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("network access"))
    with raises(HubUnreachable, "source-unreachable", "HF_HUB_OFFLINE", where="GEM/viggo@v2"):
        list(read_rows(hub("GEM/viggo", revision="v2"), folder=tmp_path))


@pytest.mark.parametrize("name", ["csv", "a/b/c", "/no/where", "../no/where", "viggo.csv"])
def test_invalid_dataset_name_is_refused(tmp_path: Path, name: str) -> None:
    with raises(DataError, "unknown-dataset", where=name):
        list(read_rows(hub(name), folder=tmp_path))


def mock_hub(monkeypatch: pytest.MonkeyPatch, reply: Exception | str) -> None:
    """Replace the hub by one that answers with a commit or an error."""
    import datasets
    import huggingface_hub

    def dataset_info(*_: Any, **__: Any) -> SimpleNamespace:
        if isinstance(reply, Exception):
            raise reply
        return SimpleNamespace(sha=reply)

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)


def test_unreachable_hub_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mock_hub(monkeypatch, ConnectionError("Name or service not known"))
    with raises(HubUnreachable, "source-unreachable", "Name or service", "connection", where="GEM/viggo"):
        list(read_rows(hub("GEM/viggo"), folder=tmp_path))
    assert resolve_commit(hub("GEM/viggo"), folder=tmp_path) is None


@pytest.mark.parametrize(
    ("error", "named"),
    [("RepositoryNotFoundError", "hf auth login"), ("RevisionNotFoundError", "`v9`")],
)
def test_unknown_dataset_and_revision_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, named: str
) -> None:
    from huggingface_hub import errors

    kind = getattr(errors, error)
    mock_hub(monkeypatch, kind.__new__(kind))
    for read in (lambda source: list(read_rows(source, folder=tmp_path)), lambda s: digest_sources(s, folder=tmp_path)):
        with raises(DataError, "unknown-dataset", named, where="me/set"):
            read(hub("me/set", revision="v9"))


def test_resolved_commit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[Any] = []

    def load_dataset(path: str, **options: Any) -> dict[str, list[dict[str, int]]]:
        calls.append((path, options))
        return {"train": [{"a": 1}]}

    mock_hub(monkeypatch, COMMIT)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(list(read_rows(hub("me/set", revision="main", config="c"), folder=tmp_path))) == 1
    assert calls == [("hf://datasets/me/set", {"name": "c", "revision": COMMIT, "streaming": True})]


def test_cache_datasets_downloads_hub_datasets(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[Any] = []
    mock_hub(monkeypatch, COMMIT)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: calls.append((path, options)))
    local = hub("me/set")
    cache_datasets((local, hub("me/far", revision="main", config="c")), folder=tmp_path)
    assert calls == [("hf://datasets/me/far", {"name": "c", "revision": COMMIT})], "a local dataset is not downloaded"
    mock_hub(monkeypatch, ConnectionError("Name or service not known"))
    with raises(HubUnreachable, "source-unreachable", where="me/far"):
        cache_datasets(hub("me/far"), folder=tmp_path)


def test_cache_datasets_accepts_a_cached_copy_offline(tmp_path: Path, cached: None) -> None:
    cache_datasets(hub("me/cached"), folder=tmp_path)


def test_cached_dataset_is_read_offline(tmp_path: Path, cached: None) -> None:
    assert [row.values for row in read_rows(hub("me/cached"), folder=tmp_path)] == [{"a": 1}, {"a": 2}]
    assert resolve_commit(hub("me/cached"), folder=tmp_path) == COMMIT
    assert len(list(read_rows(hub("me/cached", revision=COMMIT), folder=tmp_path))) == 2


def test_cached_copy_of_another_revision_is_refused(tmp_path: Path, cached: None) -> None:
    with raises(DataError, "source-unreachable", COMMIT, "b" * 40):
        list(read_rows(hub("me/cached", revision="b" * 40), folder=tmp_path))


def test_digest_of_a_local_dataset_changes_with_its_files(tmp_path: Path, dataset: Path) -> None:
    def digest(**other: str) -> str:
        return digest_sources(hub("me/set", **other), folder=tmp_path)

    before = digest()
    assert before == digest() != digest(split="test")
    (dataset / ".cache").write_text("not data")
    assert digest() == before
    (dataset / "data" / "train-00000.jsonl").write_text('{"a": 1}\n')
    assert digest() != before


def test_digest_of_a_hub_dataset_follows_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(revision: str | None) -> str:
        return digest_sources(hub("me/set", revision=revision), folder=tmp_path)

    unresolved = digest("main")
    mock_hub(monkeypatch, COMMIT)
    assert digest("main") == digest(None) == digest(COMMIT) != unresolved
    mock_hub(monkeypatch, "b" * 40)
    assert digest("main") == digest("b" * 40) != digest(COMMIT)


@pytest.mark.parametrize("name", ["[x]", "a::b"])
def test_local_dataset_with_pattern_characters_in_its_path_is_refused(tmp_path: Path, dataset: Path, name: str) -> None:
    dataset.rename(tmp_path / name)
    with raises(DataError, "wrong-path", "file:"):
        list(read_rows(hub(f"./{name}"), folder=tmp_path))


@pytest.mark.parametrize("name", ["a*b", "what?", "a#b", "100%", "a b"])
def test_local_dataset_may_have_other_special_characters_in_its_path(tmp_path: Path, dataset: Path, name: str) -> None:
    dataset.rename(tmp_path / name)
    assert [row.values["a"] for row in read_rows(hub(f"./{name}"), folder=tmp_path)] == [1, 2]


def test_hub_is_not_asked_about_a_pinned_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mock_hub(monkeypatch, COMMIT)
    commits = resolve_commits(hub("me/set"), folder=tmp_path)
    before = digest_sources(hub("me/set"), folder=tmp_path)
    assert commits == {"me/set[train]": COMMIT}
    for later in ("b" * 40, ConnectionError("no network")):  # the branch moved, or the hub is unreachable
        mock_hub(monkeypatch, later)
        assert digest_sources(hub("me/set"), folder=tmp_path, commits=commits) == before
        assert digest_sources(hub("me/set"), folder=tmp_path) != before
        assert sources_available(hub("me/set"), folder=tmp_path, commits=commits)
    assert not sources_available(hub("me/set"), folder=tmp_path)
