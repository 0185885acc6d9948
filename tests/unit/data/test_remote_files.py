"""Remote files are fetched once per version; the last version is read if their place cannot be reached."""

import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.support.errors import raises
from tests.unit.data.conftest import files

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.jsonl import json_line
from tunesmith.data.find_files import choose_shards
from tunesmith.data.remote_files import fetch, remote_label
from tunesmith.data.sources import cache_datasets, digest_sources, matched_files, read_rows, sources_available

NUMBERS = count()
FIRST, SECOND = b'{"a": "one"}\n', b'{"a": "two"}\n{"a": "three"}\n'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def texts(*names: str) -> list[str]:
    return [row.values["a"] for row in read_rows(files(*names), folder=Path())]


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if "bare" in self.path:  # without a version, and different each time
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json_line({"a": str(next(NUMBERS))}).encode())
        elif "cut" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(FIRST)
        elif "login" in self.path:
            self.send_error(403)
        elif "busy" in self.path:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[ThreadingHTTPServer, str, Path]]:
    """Yield a server on this machine, its address, and a file that it serves as `rows.jsonl`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "rows.jsonl").write_bytes(FIRST)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, f"http://127.0.0.1:{server.server_port}", tmp_path / "site" / "rows.jsonl"
    server.shutdown()
    server.server_close()
    thread.join()


def test_http_file_is_fetched_once_per_version(server: tuple[Any, str, Path], cache: Path) -> None:
    _, address, file = server
    source = files(f"{address}/rows.jsonl?token=secret")
    [(path, label)] = fetch(str(source.file), choose_shards)
    assert label == f"{address}/rows.jsonl"
    fetched = path.stat()
    assert [row.where for row in read_rows(source, folder=Path())] == [f"{label}:1"]
    digest = digest_sources(source, folder=Path())
    assert path.stat() == fetched, "the cached version was read"
    assert matched_files(source, folder=Path()) == []
    file.write_bytes(SECOND)
    os.utime(file, (1, 1))
    assert texts(str(source.file)) == ["two", "three"]
    assert digest_sources(source, folder=Path()) != digest
    kept = [found.read_text() for found in cache.rglob("*.json")]
    assert not any("secret" in text for text in kept)


def test_file_without_a_version_is_fetched_once_by_a_process(
    server: tuple[Any, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files(f"{server[1]}/bare.jsonl")
    digest, first = digest_sources(source, folder=Path()), texts(str(source.file))
    assert (digest_sources(source, folder=Path()), texts(str(source.file))) == (digest, first)
    monkeypatch.setattr("tunesmith.data.remote_files._fetched_unversioned", set())  # another process
    assert texts(str(source.file)) != first


def test_last_version_is_read_offline(server: tuple[ThreadingHTTPServer, str, Path]) -> None:
    running, address, file = server
    source = files(f"{address}/rows.jsonl")
    os.utime(file, (1, 1))
    cache_datasets(source, folder=Path())
    file.write_bytes(SECOND)
    assert texts(f"{address}/rows.jsonl") == ["two", "three"]
    file.write_bytes(FIRST)
    os.utime(file, (1, 1))
    assert texts(f"{address}/rows.jsonl") == ["one"], "an earlier version is there again"
    digest = digest_sources(source, folder=Path())
    running.shutdown()
    running.server_close()
    assert texts(f"{address}/rows.jsonl") == ["one"]
    assert digest_sources(source, folder=Path()) == digest
    assert sources_available(source, folder=Path())
    with raises(DataError, "source-unreachable", where=f"{address}/other.jsonl"):
        texts(f"{address}/other.jsonl")
    assert not sources_available(files(f"{address}/other.jsonl"), folder=Path())


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("none.jsonl", "not-found"),
        ("login.jsonl", "unreadable"),
        ("busy.jsonl", "source-unreachable"),
        ("cut.jsonl", "source-unreachable"),
        ("", "wrong-path"),
    ],
)
def test_what_cannot_be_fetched_is_an_error(server: tuple[Any, str, Path], cache: Path, name: str, code: str) -> None:
    with raises(DataError, code, where=f"{server[1]}/{name}"):
        texts(f"{server[1]}/{name}")
    assert list(cache.rglob("*.jsonl")) == [], "no half of a file is kept"


def test_fsspec_files_and_patterns() -> None:
    system = fsspec.filesystem("memory")
    system.pipe({"/bucket/b.jsonl": SECOND, "/bucket/a.jsonl": FIRST, "/bucket/x.csv": b"a\nb\n"})
    source = files("memory://bucket/*.jsonl")
    assert texts("memory://bucket/*.jsonl") == ["one", "two", "three"]
    assert texts("memory://bucket/x.csv", "memory://bucket/a.jsonl") == ["b", "one"]
    [text] = matched_files(source, folder=Path())
    assert "2 files" in text
    digest = digest_sources(source, folder=Path())
    system.pipe("/bucket/a.jsonl", FIRST)
    assert digest_sources(source, folder=Path()) == digest, "written again, with the same content"
    system.pipe("/bucket/c.jsonl", FIRST)
    assert digest_sources(source, folder=Path()) != digest
    for name, code in (("none.jsonl", "not-found"), ("*.tsv", "not-found")):
        with raises(DataError, code, where=f"memory://bucket/{name}"):
            texts(f"memory://bucket/{name}")


def test_fsspec_folder_is_its_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    system.pipe(
        {"/shards/b.jsonl": SECOND, "/shards/in/a.jsonl": FIRST, "/shards/_SUCCESS": b"", "/shards/.x.csv": b""}
    )
    for address in ("memory://shards", "memory://shards/"):
        assert texts(address) == ["two", "three", "one"]
        [text] = matched_files(files(address), folder=Path())
        assert "2 files" in text
    system.pipe("/shards/c.jsonl", FIRST)
    assert texts("memory://shards") == ["two", "three", "one", "one"]
    with monkeypatch.context() as offline:
        offline.setattr(type(system), "find", _unreachable)
        offline.setattr(type(system), "info", _unreachable)
        assert texts("memory://shards") == ["two", "three", "one", "one"]
    system.pipe({"/shards/train.jsonl": FIRST, "/shards/test.jsonl": FIRST})
    with raises(DataError, "wrong-path", "train.jsonl", where="memory://shards"):
        texts("memory://shards")
    system.pipe({"/other/x.pkl": FIRST})
    with raises(DataError, "not-found", "x.pkl", where="memory://other"):
        texts("memory://other")


def _unreachable(*_: Any, **__: Any) -> None:
    raise OSError("no connection")


def test_characters_of_a_query_belong_to_the_names_of_an_object_store() -> None:
    assert remote_label("s3://bucket/a?b#1.jsonl") == "s3://bucket/a?b#1.jsonl"
    assert remote_label("gs://user:password@bucket/a%20b.jsonl") == "gs://bucket/a%20b.jsonl"
    assert remote_label("https://user:password@host/a.jsonl?token=secret#1") == "https://host/a.jsonl"


@pytest.mark.parametrize(
    ("address", "code", "named"),
    [
        ("sftp://host/a.jsonl", "missing-package", "paramiko"),
        ("s4://bucket/a.jsonl", "wrong-value", "`s4`"),
    ],
)
def test_protocol_without_a_back_end_is_a_recipe_error(address: str, code: str, named: str) -> None:
    with raises(RecipeError, code, named, where=address):
        texts(address)


@pytest.mark.parametrize(("protocol", "package", "extra"), [("s3", "s3fs", "[s3]"), ("gs", "gcsfs", "[gcs]")])
def test_missing_package_names_its_extra(
    protocol: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with raises(RecipeError, "missing-package", extra, where=f"{protocol}://bucket/a.jsonl"):
        texts(f"{protocol}://bucket/a.jsonl")


def test_label_has_no_secrets() -> None:
    assert remote_label("https://me:pw@host:8/d/a.jsonl?X-Signature=s#x") == "https://host:8/d/a.jsonl"
