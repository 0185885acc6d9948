"""The folders of the cache and the registry, for users with and without a home folder."""

import os
from pathlib import Path

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.core.user_folders import (
    CACHE,
    FOLDERS_HINT,
    REGISTRY,
    cache_root,
    check_writable,
    is_user_folder,
    registry_root,
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CACHE, REGISTRY, "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_own_variables_precede_xdg_and_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_root() == Path("/home/user/.cache/tunesmith")
    assert registry_root() == Path("/home/user/.local/share/tunesmith/registry")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # relative paths are ignored
    assert cache_root() == Path("/home/user/.cache/tunesmith")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/tunesmith")
    monkeypatch.setenv(CACHE, "~/mine")
    assert cache_root() == Path("/home/user/mine")


def test_no_home_folder_is_an_error_that_names_both_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an unknown uid
    for root in (cache_root, registry_root):
        with raises(RecipeError, "no-home", FOLDERS_HINT):
            root()
    assert CACHE in FOLDERS_HINT
    assert REGISTRY in FOLDERS_HINT
    assert not is_user_folder(Path("runs"))


def test_check_writable_refuses_files_and_read_only_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with raises(RecipeError, "wrong-path", tmp_path / "file", FOLDERS_HINT, where="cache"):
        check_writable(tmp_path / "file" / "cache")
    with raises(RecipeError, "wrong-path", "give another", where="file"):
        check_writable(tmp_path / "file", hint="give another")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    with raises(RecipeError, "permission", FOLDERS_HINT, where=str(tmp_path / "cache")):
        check_writable(tmp_path / "cache")


def test_is_user_folder_recognises_the_cache_and_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "a" / "cache"))
    assert is_user_folder(tmp_path / "a" / "cache" / "digests" / "x.json")
    assert is_user_folder(tmp_path / "a")
    assert not is_user_folder(tmp_path / "a" / "runs")
