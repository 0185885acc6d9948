"""Files, patterns and folders of a source, in a fixed order; compressed files have the same rows."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.errors import raises
from tests.unit.data.conftest import files

from tunesmith.core.errors import DataError
from tunesmith.data.sources import digest_sources, matched_files, named_sources, read_rows, sources_available
from tunesmith.recipe.data_source import FileSource


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Return a folder with `shards/`, whose files in order are a, b/c, b/d, and some that are not rows."""
    folder = tmp_path / "shards"
    (folder / "b" / ".cache").mkdir(parents=True)
    for name in ("b/d.jsonl", "a.jsonl", "b/c.jsonl", ".hidden.jsonl", "b/.cache/x.jsonl"):
        (folder / name).write_text(f'{{"a": "{name}"}}\n')
    for name in ("_SUCCESS", "README.md"):
        (folder / name).write_text("x")
    return tmp_path


def read(folder: Path, *names: str) -> list[tuple[str, str]]:
    return [(row.where, row.values["a"]) for row in read_rows(files(*names), folder=folder)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("shards", ["a.jsonl", "b/c.jsonl", "b/d.jsonl"]),
        ("shards/", ["a.jsonl", "b/c.jsonl", "b/d.jsonl"]),
        ("shards/**/*.jsonl", ["a.jsonl", "b/c.jsonl", "b/d.jsonl"]),
        ("shards/*.jsonl", ["a.jsonl"]),
        ("shards/b/[dc].jsonl", ["b/c.jsonl", "b/d.jsonl"]),
        ("sh*/b/?.jsonl", ["b/c.jsonl", "b/d.jsonl"]),
    ],
)
def test_patterns_and_folders_are_read_in_order(shards: Path, name: str, found: list[str]) -> None:
    assert read(shards, name) == [(f"shards/{path}:1", path) for path in found]
    absolute = str(shards / name)
    assert [value for _, value in read(Path("/"), absolute)] == found
    assert all(str(shards) not in where for where, _ in read(Path("/"), absolute)), "no absolute path in a run folder"
    [text] = matched_files(files(name), folder=shards)
    assert f"`{name}` is {len(found)} file" in text
    assert f"shards/{found[0]}" in text
    assert list(named_sources(files(name))) == [name]


def test_one_file_is_not_described(shards: Path) -> None:
    assert matched_files(files("shards/a.jsonl"), folder=shards) == []


def test_a_name_that_exists_is_no_pattern(tmp_path: Path) -> None:
    for name in ("rows[1].jsonl", "rows1.jsonl"):
        (tmp_path / name).write_text(f'{{"a": "{name}"}}\n')
    assert read(tmp_path, "rows[1].jsonl") == [("rows[1].jsonl:1", "rows[1].jsonl")]


def test_pattern_without_match_lists_the_files(shards: Path) -> None:
    with raises(DataError, "not-found", "a.jsonl", "b/c.jsonl", where="shards/*.csv"):
        read(shards, "shards/*.csv")
    with raises(DataError, "not-found", where="nowhere/*.csv"):
        read(shards, "nowhere/*.csv")
    with raises(DataError, "unsupported-format", where="shards/README.md"):
        read(shards, "shards/*[a-zA-Z]*")


def test_folder_without_rows_or_with_several_splits_is_refused(shards: Path) -> None:
    (shards / "notes").mkdir()
    (shards / "notes" / "a.md").write_text("x")
    with raises(DataError, "not-found", "a.md", where="notes"):
        read(shards, "notes")
    for name in ("train-00001.jsonl", "train-00002.jsonl"):
        (shards / "notes" / name).write_text('{"a": "x"}')
    assert len(read(shards, "notes")) == 2
    (shards / "notes" / "test").mkdir()
    (shards / "notes" / "test" / "0.jsonl").write_text('{"a": "x"}')
    with raises(DataError, "wrong-path", "test/0.jsonl", "hub: notes", where="notes"):
        read(shards, "notes")


@pytest.mark.parametrize("name", ["shards", "shards/**/*.jsonl"])
def test_digest_covers_every_file(shards: Path, name: str) -> None:
    digests = [digest_sources(files(name), folder=shards)]
    (shards / "shards" / "b" / "d.jsonl").write_text('{"a": "changed"}\n')
    digests.append(digest_sources(files(name), folder=shards))
    (shards / "shards" / "b" / "e.jsonl").write_text('{"a": "new"}\n')
    digests.append(digest_sources(files(name), folder=shards))
    assert len(set(digests)) == 3
    assert sources_available(files(name), folder=shards)
    assert not sources_available(files(name), folder=shards / "elsewhere")


@pytest.mark.parametrize(("name", "content"), [("a.csv", b"a\nx\ny\n"), ("a.jsonl", b'{"a": "x"}\n{"a": "y"}\n')])
def test_compressed_files_have_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    codec = pa.Codec("zstd")
    parts = [codec.compress(part, asbytes=True) for part in (content[:5], content[5:])]
    (tmp_path / f"{name}.zst").write_bytes(b"".join(parts))  # of several frames, as parallel compressors write
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    first_line = 2 if name == "a.csv" else 1
    for file in (f"{name}.zst", f"{name}.gz"):
        assert read(tmp_path, file) == [(f"{file}:{first_line}", "x"), (f"{file}:{first_line + 1}", "y")]
    assert len(read(tmp_path, ".")) == 4
    source = FileSource(file="*.gz")
    assert digest_sources(source, folder=tmp_path) == digest_sources(FileSource(file=f"{name}.gz"), folder=tmp_path)
