"""Datasets on the hub, in its cache, and in folders laid out like one: their rows, and which commit they are of."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before `datasets` is imported

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.hub import resolve_commit
from tunesmith.data.sources import cache_datasets, digest_sources, read_rows, resolve_commits, sources_available
from tunesmith.recipe.data_source import HubSource

COMMIT = "a" * 40


def hub(name: str, **other: Any) -> HubSource:
    return HubSource(hub=name, **other)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Lay out a folder like a dataset on the hub."""
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


def test_a_local_dataset_is_read_by_split(tmp_path: Path, dataset: Path) -> None:
    found = list(read_rows(hub("me/set"), folder=tmp_path))
    assert [(row.where, row.values) for row in found] == [
        ("me/set[train] row 1", {"a": 1}),
        ("me/set[train] row 2", {"a": 2}),
    ]
    assert [row.values for row in read_rows(hub("me/set", split="test"), folder=tmp_path)] == [{"a": 3}]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"split": "dev"}, r"me/set\[dev\]: there is no split `dev`\n.*splits: train, test"),
        ({"config": "other"}, r"me/set\[train\]: cannot be read .*'other' not found. Available: \['default'\]"),
    ],
)
def test_what_a_dataset_lacks_is_told(tmp_path: Path, dataset: Path, other: dict[str, str], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        list(read_rows(hub("me/set", **other), folder=tmp_path))


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(RecipeError, match="`revision` has no effect"):
        list(read_rows(hub("me/set", revision="main"), folder=tmp_path))


def test_a_loading_script_is_never_run(tmp_path: Path, dataset: Path) -> None:
    canary = tmp_path / "canary"
    (dataset / "set.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        list(read_rows(hub("me/set"), folder=tmp_path))
    assert not canary.exists()


def test_a_folder_without_data_is_told(tmp_path: Path) -> None:
    (tmp_path / "me" / "none").mkdir(parents=True)
    with pytest.raises(DataError, match="doesn't contain any data files"):
        list(read_rows(hub("me/none"), folder=tmp_path))


def test_a_folder_where_the_program_runs_is_not_mistaken_for_the_hub(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        list(read_rows(hub("me/set"), folder=tmp_path / "recipes"))


def test_offline_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a host is looked up"))
    with pytest.raises(DataError, match="GEM/viggo@v2: the hub is not asked, because HF_HUB_OFFLINE is set"):
        list(read_rows(hub("GEM/viggo", revision="v2"), folder=tmp_path))


@pytest.mark.parametrize("name", ["csv", "a/b/c", "/no/where", "../no/where", "viggo.csv"])
def test_what_names_no_dataset_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is neither `org/name` of a dataset nor a folder"):
        list(read_rows(hub(name), folder=tmp_path))


def answer(monkeypatch: pytest.MonkeyPatch, given: Exception | str) -> None:
    """Let the hub answer with a commit or an error."""
    import datasets
    import huggingface_hub

    def dataset_info(*_: Any, **__: Any) -> SimpleNamespace:
        if isinstance(given, Exception):
            raise given
        return SimpleNamespace(sha=given)

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)


def test_an_unreachable_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, ConnectionError("Name or service not known"))
    with pytest.raises(DataError, match=r"GEM/viggo: the hub cannot be reached .Name or service.*\n.*connection"):
        list(read_rows(hub("GEM/viggo"), folder=tmp_path))
    assert resolve_commit(hub("GEM/viggo"), folder=tmp_path) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("RepositoryNotFoundError", "no such dataset, or does not show it"),
        ("RevisionNotFoundError", "no revision `v9`"),
    ],
)
def test_what_the_hub_does_not_have_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, expected: str
) -> None:
    from huggingface_hub import errors

    kind = getattr(errors, error)
    answer(monkeypatch, kind.__new__(kind))
    for ask in (lambda source: list(read_rows(source, folder=tmp_path)), lambda s: digest_sources(s, folder=tmp_path)):
        with pytest.raises(DataError, match=f"me/set: .*{expected}"):
            ask(hub("me/set", revision="v9"))


def test_the_commit_that_was_resolved_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(path: str, **options: Any) -> dict[str, list[dict[str, int]]]:
        asked.append((path, options))
        return {"train": [{"a": 1}]}

    answer(monkeypatch, COMMIT)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(list(read_rows(hub("me/set", revision="main", config="c"), folder=tmp_path))) == 1
    assert asked == [("hf://datasets/me/set", {"name": "c", "revision": COMMIT, "streaming": True})]


def test_copies_are_kept_of_what_is_on_the_hub(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []
    answer(monkeypatch, COMMIT)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: asked.append((path, options)))
    local = hub("me/set")
    cache_datasets((local, hub("me/far", revision="main", config="c")), folder=tmp_path)
    assert asked == [("hf://datasets/me/far", {"name": "c", "revision": COMMIT})], "and what is a folder here stays"
    answer(monkeypatch, ConnectionError("Name or service not known"))
    with pytest.raises(DataError, match="me/far: the hub cannot be reached"):
        cache_datasets(hub("me/far"), folder=tmp_path)


def test_a_copy_that_is_there_suffices_offline(tmp_path: Path, cached: None) -> None:
    cache_datasets(hub("me/cached"), folder=tmp_path)


def test_a_cached_dataset_is_read_offline(tmp_path: Path, cached: None) -> None:
    assert [row.values for row in read_rows(hub("me/cached"), folder=tmp_path)] == [{"a": 1}, {"a": 2}]
    assert resolve_commit(hub("me/cached"), folder=tmp_path) == COMMIT
    assert len(list(read_rows(hub("me/cached", revision=COMMIT), folder=tmp_path))) == 2


def test_a_cached_copy_of_another_revision_is_refused(tmp_path: Path, cached: None) -> None:
    with pytest.raises(DataError, match=f"the cached copy is of revision {COMMIT}, not {'b' * 40}"):
        list(read_rows(hub("me/cached", revision="b" * 40), folder=tmp_path))


def test_the_digest_of_a_local_dataset_changes_with_it(tmp_path: Path, dataset: Path) -> None:
    def digest(**other: str) -> str:
        return digest_sources(hub("me/set", **other), folder=tmp_path)

    before = digest()
    assert before == digest() != digest(split="test")
    (dataset / ".cache").write_text("not data")
    assert digest() == before
    (dataset / "data" / "train-00000.jsonl").write_text('{"a": 1}\n')
    assert digest() != before


def test_the_digest_of_a_dataset_is_that_of_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(revision: str | None) -> str:
        return digest_sources(hub("me/set", revision=revision), folder=tmp_path)

    unresolved = digest("main")
    answer(monkeypatch, COMMIT)
    assert digest("main") == digest(None) == digest(COMMIT) != unresolved
    answer(monkeypatch, "b" * 40)
    assert digest("main") == digest("b" * 40) != digest(COMMIT)


@pytest.mark.parametrize("name", ["[x]", "a::b"])
def test_a_dataset_s_folder_that_the_library_cannot_open_is_refused(tmp_path: Path, dataset: Path, name: str) -> None:
    dataset.rename(tmp_path / name)
    with pytest.raises(DataError, match="takes for a pattern") as caught:
        list(read_rows(hub(f"./{name}"), folder=tmp_path))
    assert "file:" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["a*b", "what?", "a#b", "100%", "a b"])
def test_a_dataset_s_folder_may_have_any_name(tmp_path: Path, dataset: Path, name: str) -> None:
    dataset.rename(tmp_path / name)
    assert [row.values["a"] for row in read_rows(hub(f"./{name}"), folder=tmp_path)] == [1, 2]


def test_a_dataset_that_is_pinned_is_not_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, COMMIT)
    commits = resolve_commits(hub("me/set"), folder=tmp_path)
    before = digest_sources(hub("me/set"), folder=tmp_path)
    assert commits == {"me/set[train]": COMMIT}
    for later in ("b" * 40, ConnectionError("no network")):  # the branch moved, or nobody can tell
        answer(monkeypatch, later)
        assert digest_sources(hub("me/set"), folder=tmp_path, commits=commits) == before
        assert digest_sources(hub("me/set"), folder=tmp_path) != before
        assert sources_available(hub("me/set"), folder=tmp_path, commits=commits)
    assert not sources_available(hub("me/set"), folder=tmp_path)
