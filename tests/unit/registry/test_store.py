"""The registry: versions are append-only, aliases move by compare-and-swap, and shared files survive a deletion."""

import os
import pwd
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.support.errors import raises
from tests.unit.registry.conftest import FACTS, adapter, add, assert_sound, move, tree

from tunesmith.core.errors import DamagedFile, RecipeError, TunesmithError
from tunesmith.core.files import check_folder, digest_file, seal_folder
from tunesmith.registry.store import Registry


def test_add_stores_a_folder_as_a_version(registry: Registry, tmp_path: Path) -> None:
    source = adapter(tmp_path / "adapter")
    version = registry.add("viggo", source, facts=FACTS)
    assert (str(version), version.facts) == ("viggo@1", FACTS)
    folder = registry.folder(version)
    assert folder == registry.root / "models" / "viggo" / "1"
    for name in ("adapter_config.json", "adapter_model.safetensors", "deep/notes.txt"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
        stored = registry.root / "objects" / (sha := digest_file(source / name))[:2] / sha
        assert (folder / name).samefile(stored)
        assert stored.stat().st_mode & 0o777 == 0o444
        assert (source / name).stat().st_mode & 0o200, "the source stays writable"
    assert check_folder(folder)["facts"] == FACTS
    assert_sound(registry)


def test_version_does_not_follow_changes_of_its_source(registry: Registry, tmp_path: Path) -> None:
    source = adapter(tmp_path / "adapter")
    version = registry.add("viggo", source, facts=FACTS)
    adapter(source, "other weights")
    registry.verify(version)


def test_add_copies_files_if_hard_links_fail(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    version = registry.add("viggo", adapter(tmp_path / "adapter"), facts=FACTS)
    path = registry.folder(version) / "adapter_config.json"
    assert (path.stat().st_nlink, path.stat().st_mode & 0o777) == (1, 0o444)
    assert_sound(registry)


def test_adding_identical_files_and_facts_returns_the_same_version(registry: Registry, tmp_path: Path) -> None:
    source = adapter(tmp_path / "adapter")
    first = registry.add("viggo", source, facts=FACTS)
    before = tree(registry.root)
    assert registry.add("viggo", adapter(tmp_path / "copy"), facts=dict(reversed(FACTS.items()))) == first
    assert tree(registry.root) == before
    assert registry.add("viggo", source, facts={**FACTS, "run": "runs/viggo/2"}).number == 2
    assert registry.add("other", source, facts=FACTS).number == 1
    assert registry.add("viggo", adapter(source, "more"), facts=FACTS).number == 3
    assert [version.number for version in registry.versions("viggo")] == [1, 2, 3]
    assert_sound(registry)


def test_version_can_be_added_under_another_name(registry: Registry, tmp_path: Path) -> None:
    first = registry.add("viggo", adapter(tmp_path / "adapter"), facts=FACTS)
    second = registry.add("other", registry.folder(first), facts=FACTS)
    assert second.files == first.files
    registry.verify(second)


def test_facts_make_a_json_round_trip(registry: Registry, tmp_path: Path) -> None:
    facts = {"pair": (1, 2), "gain": float("nan"), "text": "a\ud800b", "é": "ü"}
    version = registry.add("viggo", adapter(tmp_path / "adapter"), facts=facts)
    assert version.facts == {"pair": [1, 2], "gain": "NaN", "text": "a?b", "é": "ü"}
    assert registry.resolve("viggo@1") == version
    assert registry.add("viggo", tmp_path / "adapter", facts=facts) == version
    registry.verify(version)


def link(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "adapter_config.json")


def dangling(folder: Path) -> None:
    (folder / "link").symlink_to("nowhere")


def linked_folder(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "deep")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def foreign_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "an app"}')


def odd_name(folder: Path) -> None:
    Path(os.fsdecode(bytes(folder) + b"/\xff")).write_text("")


@pytest.mark.parametrize("spoil", [link, dangling, linked_folder, pipe, foreign_manifest, odd_name, shutil.rmtree])
def test_add_refuses_a_bad_folder(registry: Registry, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    source = adapter(tmp_path / "adapter")
    spoil(source)
    with raises(RecipeError, "bad-version-folder"):
        registry.add("viggo", source, facts=FACTS)
    assert registry.models() == []


def test_add_refuses_an_empty_folder(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with raises(RecipeError, "bad-version-folder", where="empty"):
        registry.add("viggo", tmp_path / "empty", facts=FACTS)


def test_add_checks_a_sealed_folder_first(registry: Registry, tmp_path: Path) -> None:
    source = adapter(tmp_path / "checkpoint")
    seal_folder(source, step=400)
    assert "manifest.json" not in registry.add("viggo", source, facts=FACTS).files
    adapter(source, "altered")
    with raises(DamagedFile, "damaged-file", where="adapter_model.safetensors"):
        registry.add("viggo", source, facts=FACTS)


def test_add_detects_a_file_that_changes_during_the_copy(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copyfile = adapter(tmp_path / "adapter"), shutil.copyfile
    adapter(source, "changed")
    monkeypatch.setattr(shutil, "copyfile", lambda a, b: (copyfile(a, b), Path(b).write_bytes(b"half"))[0])
    with raises(DamagedFile, "damaged-file", where="adapter_config.json"):
        registry.add("viggo", source, facts=FACTS)
    monkeypatch.undo()
    add(registry, "weights")
    assert_sound(registry)


def test_moves_are_logged_with_their_verdict(registry: Registry) -> None:
    for content in "abc":
        add(registry, content)
    verdict = {"verdict": "not_better", "primary": {"gain": float("nan")}}
    move(registry, 1, verdict={"verdict": "better"})
    move(registry, 2, verdict=verdict, forced=True, reason="they \udcff wait", expected=1)
    move(registry, 3, alias="production", expected=None)
    assert registry.rollback("viggo", "staging", reason="worse").number == 1
    log = registry.history("viggo")
    assert [(m.alias, m.kind, m.before, m.after, m.forced, m.reason) for m in log] == [
        ("staging", "move", None, 1, False, None),
        ("staging", "move", 1, 2, True, "they ? wait"),
        ("production", "move", None, 3, False, None),
        ("staging", "rollback", 2, 1, False, "worse"),
    ]
    assert log[1].verdict == {"verdict": "not_better", "primary": {"gain": "NaN"}}
    assert log[3].verdict is None
    assert all(m.user and m.time.endswith("+00:00") and m.model == "viggo" for m in log)
    assert registry.history("viggo", "production") == [log[2]]
    assert registry.history("viggo", "nobody") == []
    assert registry.models()[0].aliases == {"production": 3, "staging": 1}


def test_move_compares_the_expected_version_first(registry: Registry) -> None:
    for content in "abc":
        add(registry, content)
    with raises(TunesmithError, "alias-moved", where="viggo@staging"):
        move(registry, 1, expected=1)
    move(registry, 1, expected=None)
    with raises(TunesmithError, "alias-moved", "version 1"):
        move(registry, 2, expected=None)
    with raises(TunesmithError, "alias-moved", "version 1", "version 3"):
        move(registry, 2, expected=3)
    assert registry.alias_target("viggo", "staging") == 1
    assert len(registry.history("viggo")) == 1
    move(registry, 2, expected=1)
    move(registry, 3)
    assert registry.alias_target("viggo", "staging") == 3
    assert registry.alias_target("viggo", "other") is None


def test_a_refusal_is_logged_for_the_version_that_the_alias_points_at(registry: Registry) -> None:
    for content in "ab":
        add(registry, content)
    move(registry, 1)
    with raises(TunesmithError, "alias-moved", where="viggo@staging"):
        registry.log_refusal("viggo", "staging", 2, verdict=None, reason="not better")
    registry.log_refusal("viggo", "staging", 1, verdict=None, reason="not better")
    assert [(entry.kind, entry.before, entry.after) for entry in registry.history("viggo")] == [
        ("move", None, 1), ("refusal", 1, 1),
    ]  # fmt: skip
    assert registry.alias_target("viggo", "staging") == 1


def test_the_error_names_who_moved_the_alias_and_not_who_was_refused(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in "ab":
        add(registry, content)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ana"))
    move(registry, 2)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ben"))
    registry.log_refusal("viggo", "staging", 2, verdict=None, reason="not better")
    with raises(TunesmithError, "alias-moved", "ana") as caught:
        move(registry, 1, expected=1)
    assert "ben" not in str(caught.value)


@pytest.mark.parametrize("reason", [None, "", " "])
def test_forced_move_needs_a_reason(registry: Registry, reason: str | None) -> None:
    add(registry, "a")
    with raises(RecipeError, "force-reason"):
        move(registry, 1, forced=True, reason=reason)
    assert registry.history("viggo") == []


def test_each_rollback_goes_one_version_further(registry: Registry) -> None:
    for content in "abc":
        move(registry, add(registry, content))
    move(registry, 3)  # to its current version: logged, but not a step to roll back
    assert [registry.rollback("viggo", "staging").number for _ in range(2)] == [2, 1]
    with raises(TunesmithError, "no-earlier-version", where="viggo@staging"):
        registry.rollback("viggo", "staging")
    move(registry, 3)
    assert registry.rollback("viggo", "staging").number == 1
    with raises(RecipeError, "not-in-registry", "production"):
        registry.rollback("viggo", "production")


class Aliases(RuleBasedStateMachine):
    """Compare any sequence of moves, rollbacks and deletions with a plain list of the alias's versions."""

    registry: Registry

    def __init__(self) -> None:
        super().__init__()
        self.versions, self.live, self.added = list[int](), set[int](), 0
        shutil.rmtree(self.registry.root, ignore_errors=True)

    @rule()
    def add(self) -> None:
        self.added += 1
        assert add(self.registry, f"content {self.added}") == self.added
        self.live.add(self.added)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.live)))
        move(self.registry, version, expected=self.versions[-1] if self.versions else None)
        if self.versions[-1:] != [version]:
            self.versions.append(version)

    @precondition(lambda self: self.versions)
    @rule()
    def roll_back(self) -> None:
        earlier = list(self.versions)
        while earlier and (earlier[-1] == self.versions[-1] or earlier[-1] not in self.live):
            earlier.pop()
        if earlier:
            assert self.registry.rollback("viggo", "staging").number == earlier[-1]
            self.versions = earlier
        else:
            with raises(TunesmithError, "no-earlier-version"):
                self.registry.rollback("viggo", "staging")

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.live)))
        if self.versions[-1:] == [version]:
            with raises(RecipeError, "alias-in-use", "staging"):
                self.registry.delete("viggo", version)
        else:
            self.registry.delete("viggo", version)
            self.live.remove(version)

    @invariant()
    def alias_agrees_with_the_log(self) -> None:
        if not self.added:
            return
        log = self.registry.history("viggo", "staging")
        assert self.registry.alias_target("viggo", "staging") == (self.versions[-1] if self.versions else None)
        assert [m.before for m in log] == [None, *(m.after for m in log)][: len(log)]
        assert not self.versions or log[-1].after == self.versions[-1]
        assert {version.number for version in self.registry.versions("viggo")} == self.live


def test_aliases_follow_their_log(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Aliases, "registry", registry, raising=False)
    run_state_machine_as_test(Aliases, settings=settings(max_examples=12, stateful_step_count=18, deadline=None))


def test_triggers_refuse_changes_of_log_and_versions(registry: Registry) -> None:
    move(registry, add(registry, "a"))
    log = registry.history("viggo")
    connection = sqlite3.connect(registry.root / "registry.sqlite")
    for statement in (
        "DELETE FROM moves",
        "UPDATE moves SET entry = '{}'",
        "DELETE FROM versions",
        "UPDATE versions SET entry = '{}'",
    ):
        with pytest.raises(sqlite3.IntegrityError) as error:
            connection.execute(statement)
        assert "append-only" in str(error.value)
    connection.close()
    assert registry.history("viggo") == log


def test_delete_keeps_shared_files_and_aliased_versions(registry: Registry) -> None:
    for content in "abc":
        add(registry, content)
    move(registry, 1)
    move(registry, 2)
    move(registry, 3)
    with raises(RecipeError, "alias-in-use", "staging", where="viggo@3"):
        registry.delete("viggo", 3)
    registry.delete("viggo", 2)
    assert_sound(registry)
    for reference in ("viggo@2", "viggo@4"):
        with raises(RecipeError, "not-in-registry"):
            registry.resolve(reference)
    with raises(RecipeError, "not-in-registry"):
        registry.delete("viggo", 2)
    assert registry.rollback("viggo", "staging").number == 1
    assert add(registry, "b") == 4, "a number is not used twice"
    registry.delete("viggo", 4)
    assert add(registry, "d") == 5
    assert_sound(registry)
