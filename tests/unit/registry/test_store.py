"""The registry: versions are only added, aliases move by compare-and-swap, and what others need is not deleted."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.unit.registry.conftest import FACTS, adapter, add, assert_sound, move, tree

from tunesmith.core.errors import DamagedFile, RecipeError, TunesmithError
from tunesmith.core.files import check_folder, digest_file, seal_folder
from tunesmith.registry.store import Registry


def test_a_version_is_the_folder_that_was_added(registry: Registry, tmp_path: Path) -> None:
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
        assert (source / name).stat().st_mode & 0o200, "the source is not ours to change"
    assert check_folder(folder)["facts"] == FACTS
    assert_sound(registry)


def test_the_source_may_change_afterwards(registry: Registry, tmp_path: Path) -> None:
    source = adapter(tmp_path / "adapter")
    version = registry.add("viggo", source, facts=FACTS)
    adapter(source, "other weights")
    registry.verify(version)


def test_without_hard_links_files_are_copied(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    version = registry.add("viggo", adapter(tmp_path / "adapter"), facts=FACTS)
    path = registry.folder(version) / "adapter_config.json"
    assert (path.stat().st_nlink, path.stat().st_mode & 0o777) == (1, 0o444)
    assert_sound(registry)


def test_adding_the_same_again_gives_the_same_version(registry: Registry, tmp_path: Path) -> None:
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


def test_a_version_can_be_added_under_another_name(registry: Registry, tmp_path: Path) -> None:
    first = registry.add("viggo", adapter(tmp_path / "adapter"), facts=FACTS)
    second = registry.add("other", registry.folder(first), facts=FACTS)
    assert second.files == first.files
    registry.verify(second)


def test_facts_come_back_as_they_are_stored(registry: Registry, tmp_path: Path) -> None:
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
def test_folders_that_cannot_be_versions(registry: Registry, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    source = adapter(tmp_path / "adapter")
    spoil(source)
    with pytest.raises(RecipeError):
        registry.add("viggo", source, facts=FACTS)
    assert registry.models() == []


def test_an_empty_folder_is_no_version(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(RecipeError, match="no files"):
        registry.add("viggo", tmp_path / "empty", facts=FACTS)


def test_a_sealed_folder_is_checked_before_it_is_added(registry: Registry, tmp_path: Path) -> None:
    source = adapter(tmp_path / "checkpoint")
    seal_folder(source, step=400)
    assert "manifest.json" not in registry.add("viggo", source, facts=FACTS).files
    adapter(source, "altered")
    with pytest.raises(DamagedFile, match="adapter_model"):
        registry.add("viggo", source, facts=FACTS)


def test_a_file_that_changes_meanwhile_is_noticed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copyfile = adapter(tmp_path / "adapter"), shutil.copyfile
    adapter(source, "changed")
    monkeypatch.setattr(shutil, "copyfile", lambda a, b: (copyfile(a, b), Path(b).write_bytes(b"half"))[0])
    with pytest.raises(DamagedFile, match="changed while"):
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


def test_expected_is_compared_before_the_move(registry: Registry) -> None:
    for content in "abc":
        add(registry, content)
    with pytest.raises(TunesmithError, match="does not exist"):
        move(registry, 1, expected=1)
    move(registry, 1, expected=None)
    with pytest.raises(TunesmithError, match="points at 1"):
        move(registry, 2, expected=None)
    with pytest.raises(TunesmithError, match=r"points at 1 .*was to point at 3"):
        move(registry, 2, expected=3)
    assert registry.alias_target("viggo", "staging") == 1
    assert len(registry.history("viggo")) == 1
    move(registry, 2, expected=1)
    move(registry, 3)
    assert registry.alias_target("viggo", "staging") == 3
    assert registry.alias_target("viggo", "other") is None


@pytest.mark.parametrize("reason", [None, "", " "])
def test_a_forced_move_needs_a_reason(registry: Registry, reason: str | None) -> None:
    add(registry, "a")
    with pytest.raises(RecipeError, match="reason"):
        move(registry, 1, forced=True, reason=reason)
    assert registry.history("viggo") == []


def test_rolling_back_goes_further_each_time(registry: Registry) -> None:
    for content in "abc":
        move(registry, add(registry, content))
    move(registry, 3)  # to where it is: logged, but no step of its own
    assert [registry.rollback("viggo", "staging").number for _ in range(2)] == [2, 1]
    with pytest.raises(TunesmithError, match="no earlier"):
        registry.rollback("viggo", "staging")
    move(registry, 3)
    assert registry.rollback("viggo", "staging").number == 1
    with pytest.raises(RecipeError, match="no alias `production`"):
        registry.rollback("viggo", "production")


class Aliases(RuleBasedStateMachine):
    """Any sequence of moves, rollbacks and deletions, against a plain list of where the alias was."""

    registry: Registry

    def __init__(self) -> None:
        super().__init__()
        self.way, self.live, self.added = list[int](), set[int](), 0
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
        move(self.registry, version, expected=self.way[-1] if self.way else None)
        if self.way[-1:] != [version]:
            self.way.append(version)

    @precondition(lambda self: self.way)
    @rule()
    def roll_back(self) -> None:
        earlier = list(self.way)
        while earlier and (earlier[-1] == self.way[-1] or earlier[-1] not in self.live):
            earlier.pop()
        if earlier:
            assert self.registry.rollback("viggo", "staging").number == earlier[-1]
            self.way = earlier
        else:
            with pytest.raises(TunesmithError, match="no earlier"):
                self.registry.rollback("viggo", "staging")

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.live)))
        if self.way[-1:] == [version]:
            with pytest.raises(RecipeError, match="staging points at"):
                self.registry.delete("viggo", version)
        else:
            self.registry.delete("viggo", version)
            self.live.remove(version)

    @invariant()
    def alias_is_what_the_log_says(self) -> None:
        if not self.added:
            return
        log = self.registry.history("viggo", "staging")
        assert self.registry.alias_target("viggo", "staging") == (self.way[-1] if self.way else None)
        assert [m.before for m in log] == [None, *(m.after for m in log)][: len(log)]
        assert not self.way or log[-1].after == self.way[-1]
        assert {version.number for version in self.registry.versions("viggo")} == self.live


def test_the_log_replays_to_the_alias(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Aliases, "registry", registry, raising=False)
    run_state_machine_as_test(Aliases, settings=settings(max_examples=12, stateful_step_count=18, deadline=None))


def test_the_log_and_the_versions_cannot_be_rewritten(registry: Registry) -> None:
    move(registry, add(registry, "a"))
    log = registry.history("viggo")
    connection = sqlite3.connect(registry.root / "registry.sqlite")
    for statement in (
        "DELETE FROM moves",
        "UPDATE moves SET entry = '{}'",
        "DELETE FROM versions",
        "UPDATE versions SET entry = '{}'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()
    assert registry.history("viggo") == log


def test_deleting_keeps_what_others_need(registry: Registry) -> None:
    for content in "abc":
        add(registry, content)
    move(registry, 1)
    move(registry, 2)
    move(registry, 3)
    with pytest.raises(RecipeError, match="staging points at"):
        registry.delete("viggo", 3)
    registry.delete("viggo", 2)
    assert_sound(registry)
    for reference in ("viggo@2", "viggo@4"):
        with pytest.raises(RecipeError):
            registry.resolve(reference)
    with pytest.raises(RecipeError):
        registry.delete("viggo", 2)
    assert registry.rollback("viggo", "staging").number == 1
    assert add(registry, "b") == 4, "a number is not used twice"
    registry.delete("viggo", 4)
    assert add(registry, "d") == 5
    assert_sound(registry)
