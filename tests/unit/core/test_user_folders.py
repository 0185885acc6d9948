"""Where the cache and the registry are, for users with and without a home."""

import os
from pathlib import Path

import pytest

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


def test_variables_come_before_xdg_and_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_root() == Path("/home/user/.cache/tunesmith")
    assert registry_root() == Path("/home/user/.local/share/tunesmith/registry")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # counts as none
    assert cache_root() == Path("/home/user/.cache/tunesmith")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/tunesmith")
    monkeypatch.setenv(CACHE, "~/mine")
    assert cache_root() == Path("/home/user/mine")


def test_without_a_home_the_error_names_both_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a uid that the system does not know
    for root in (cache_root, registry_root):
        with pytest.raises(RecipeError) as caught:
            root()
        assert (caught.value.code, caught.value.hint) == ("no-home", FOLDERS_HINT)
    assert CACHE in FOLDERS_HINT
    assert REGISTRY in FOLDERS_HINT
    assert not is_user_folder(Path("runs"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError) as caught:
        check_writable(tmp_path / "file" / "cache")
    assert caught.value.code == "wrong-path"
    with pytest.raises(RecipeError) as caught:
        check_writable(tmp_path / "file", hint="name another")
    assert (caught.value.code, caught.value.hint) == ("wrong-path", "name another")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(RecipeError) as caught:
        check_writable(tmp_path / "cache")
    assert caught.value.code == "permission"
    assert (caught.value.where, caught.value.hint) == (str(tmp_path / "cache"), FOLDERS_HINT)


def test_paths_in_the_cache_or_above_it_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "a" / "cache"))
    assert is_user_folder(tmp_path / "a" / "cache" / "digests" / "x.json")
    assert is_user_folder(tmp_path / "a")
    assert not is_user_folder(tmp_path / "a" / "runs")
