"""The registry: versions are only added, aliases move by compare-and-swap, and no crash or damage goes unnoticed."""

import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tunesmith.core.errors import DamagedFile, DoesNotFit, Interrupted, RecipeError, TunesmithError
from tunesmith.core.files import check_folder, digest_file, seal_folder
from tunesmith.registry import database, objects
from tunesmith.registry.catalog import Catalog
from tunesmith.registry.names import parse_reference
from tunesmith.registry.store import Registry, looks_like_reference

FACTS = {"run": "runs/viggo/1", "recipe": "aa", "base": {"reference": "org/base", "digest": "bb"}, "verdict": None}
BAD_NAMES = [
    *("", ".", "..", "../x", "..\\x", "a/b", "a\\b", "/etc/passwd", "C:\\x", "~", "~root", "%2e%2e", "%2e%2e%2fx"),
    *("%252e", "a\x00", "\x00", "a b", " a", "a ", "a\n", "\na", "a.", "a..b", "-a", "_a", ".a", "A", "modeL", "é"),
    *(
        "vi\u0261go",
        "\uff41",
        "\u202eogg",
        "a\u200b",
        "a@b",
        "@",
        "$(x)",
        "a;b",
        "a'",
        '"',
        "x" * 65,
        "x" * 300,
        "\u0663a",
    ),
]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder in memory where there is one: thousands of fsyncs take a minute on a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def adapter(path: Path, content: str = "weights") -> Path:
    """Write a small folder that looks like an adapter."""
    (path / "deep").mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text('{"r": 16}')
    (path / "adapter_model.safetensors").write_text(content)
    (path / "deep" / "notes.txt").write_text("the same everywhere")
    return path


def add(registry: Registry, content: str, name: str = "viggo") -> int:
    """Add a version with some content and return its number."""
    source = adapter(registry.root.parent / f"source-{os.getpid()}", content)
    return registry.add(name, source, facts=FACTS).number


def tree(root: Path) -> set[str]:
    """Return all files below a registry."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def assert_sound(registry: Registry) -> None:
    """Assert that every version is whole, and that nothing but the versions is there."""
    expected = {"registry.sqlite", ".lock"}
    for model in registry.models():
        assert set(model.aliases.values()) <= set(model.versions)
        for version in registry.versions(model.name):
            registry.check(version)
            folder = registry.folder(version).relative_to(registry.root).as_posix()
            expected |= {f"{folder}/{name}" for name in (*version.files, "manifest.json")}
            expected |= {f"objects/{(sha := file['sha256'])[:2]}/{sha}" for file in version.files.values()}
    assert tree(registry.root) == expected


def move(registry: Registry, version: int, alias: str = "staging", **more: Any) -> None:
    """Move an alias of viggo."""
    registry.move("viggo", alias, version, **{"verdict": None, "reason": None, **more})


# --- adding


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
    registry.check(version)


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
    registry.check(second)


def test_facts_come_back_as_they_are_stored(registry: Registry, tmp_path: Path) -> None:
    facts = {"pair": (1, 2), "gain": float("nan"), "text": "a\ud800b", "é": "ü"}
    version = registry.add("viggo", adapter(tmp_path / "adapter"), facts=facts)
    assert version.facts == {"pair": [1, 2], "gain": "NaN", "text": "a?b", "é": "ü"}
    assert registry.resolve("viggo@1") == version
    assert registry.add("viggo", tmp_path / "adapter", facts=facts) == version
    registry.check(version)


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


# --- moving and rolling back


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
    assert registry.current("viggo", "staging") == 1
    assert len(registry.history("viggo")) == 1
    move(registry, 2, expected=1)
    move(registry, 3)
    assert registry.current("viggo", "staging") == 3
    assert registry.current("viggo", "other") is None


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
        assert self.registry.current("viggo", "staging") == (self.way[-1] if self.way else None)
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


# --- naming and resolving


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_names_that_are_not_allowed(registry: Registry, tmp_path: Path, bad: str) -> None:
    source = adapter(tmp_path / "adapter")
    registry.add("viggo", source, facts=FACTS)
    before = sorted(tmp_path.rglob("*"))
    calls: list[Callable[[], object]] = [
        lambda: registry.add(bad, source, facts=FACTS),
        lambda: registry.move(bad, "staging", 1, verdict=None, reason=None),
        lambda: move(registry, 1, alias=bad),
        lambda: registry.rollback(bad, "staging"),
        lambda: registry.rollback("viggo", bad),
        lambda: registry.resolve(f"{bad}@staging"),
        lambda: registry.resolve(f"viggo@{bad}"),
        lambda: registry.versions(bad),
        lambda: registry.history(bad),
        lambda: registry.history("viggo", bad),
        lambda: registry.current("viggo", bad),
        lambda: registry.delete(bad, 1),
    ]
    for call in calls:
        with pytest.raises(RecipeError) as error:
            call()
        assert "use 1 to 64 of" in str(error.value)
        assert str(error.value).isascii(), "look-alikes and control characters are shown for what they are"
    assert sorted(tmp_path.rglob("*")) == before
    assert not looks_like_reference(f"{bad}@staging")
    assert not looks_like_reference(f"viggo@{bad}")


@pytest.mark.parametrize("name", ["a", "0", "a-b_c.d", "x" * 64, "3b", "con", "v1.0"])
def test_names_that_are_allowed(registry: Registry, name: str) -> None:
    assert add(registry, "a", name) == 1
    registry.move(name, "staging", 1, verdict=None, reason=None)
    assert registry.resolve(f"{name}@staging") == registry.resolve(f"{name}@1")


@pytest.mark.parametrize("digits", ["3", "007", "0", "1" * 30])
def test_an_alias_is_not_a_number(registry: Registry, digits: str) -> None:
    add(registry, "a")
    with pytest.raises(RecipeError, match="cannot name an alias"):
        move(registry, 1, alias=digits)


def test_what_a_reference_looks_like() -> None:
    assert parse_reference("viggo@staging") == ("viggo", "staging")
    assert parse_reference("viggo@12") == ("viggo", 12)
    for text in ("viggo@staging", "viggo@1", "3@3", "a.b@v1.2"):
        assert looks_like_reference(text)
    for text in (
        "viggo",
        "viggo@",
        "@1",
        "a@b@c",
        "org/viggo@main",
        "viggo@0",
        "viggo@03",
        "viggo@-1",
        "viggo@\u0663",
        "",
    ):
        assert not looks_like_reference(text)


def test_what_is_not_there_is_said_with_what_is(registry: Registry) -> None:
    with pytest.raises(RecipeError, match="no model at all"):
        registry.resolve("viggo@1")
    assert not registry.root.exists(), "looking creates nothing"
    move(registry, add(registry, "a"))
    for reference, told in {
        "vigo@1": "there is viggo",
        "viggo@2": r"there is 1, staging \(1\)",
        "viggo@production": r"there is 1, staging \(1\)",
    }.items():
        with pytest.raises(RecipeError, match=told):
            registry.resolve(reference)
    with pytest.raises(RecipeError):
        move(registry, 10**30)
    assert registry.resolve("viggo@staging").number == 1


def test_where_the_registry_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.delenv("TUNESMITH_REGISTRY", raising=False)
    assert Registry.default().root == tmp_path / ".local/share/tunesmith/registry"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert Registry.default().root == tmp_path / ".local/share/tunesmith/registry"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Registry.default().root == tmp_path / "data/tunesmith/registry"
    monkeypatch.setenv("TUNESMITH_REGISTRY", "~/models")
    assert Registry.default().root == tmp_path / "models"


# --- deleting


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


# --- damage


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "deep/notes.txt"])
def test_a_flipped_byte_is_found(registry: Registry, name: str) -> None:
    add(registry, "weights")
    version = registry.resolve("viggo@1")
    path = registry.folder(version) / name
    path.chmod(0o644)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DamagedFile, match=name) as error:
        registry.check(version)
    assert error.value.exit_code == 6
    manifest = registry.folder(version) / "manifest.json"
    manifest.unlink()
    seal_folder(manifest.parent, model="viggo", facts=FACTS)
    with pytest.raises(DamagedFile, match=name):
        registry.check(version)


def test_missing_added_and_rewritten_files_are_found(registry: Registry) -> None:
    add(registry, "weights")
    version = registry.resolve("viggo@1")
    folder = registry.folder(version)
    (folder / "extra.py").write_text("")
    with pytest.raises(DamagedFile, match=r"extra\.py: does not belong"):
        registry.check(version)
    (folder / "extra.py").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "facts": {}}))
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        registry.check(version)
    (folder / "manifest.json").unlink()
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        registry.check(version)
    shutil.rmtree(folder)
    with pytest.raises(DamagedFile, match="missing"):
        registry.check(version)


def test_a_damaged_object_does_not_get_into_a_new_version(registry: Registry) -> None:
    add(registry, "weights")
    damaged = registry.folder(registry.resolve("viggo@1")) / "deep" / "notes.txt"
    damaged.chmod(0o644)
    damaged.write_text("the same, but for a flip")
    assert add(registry, "other weights") == 2
    registry.check(registry.resolve("viggo@2"))
    with pytest.raises(DamagedFile):
        registry.check(registry.resolve("viggo@1"))


def test_no_damage_of_the_database_goes_by(registry: Registry) -> None:
    for content in "ab":
        move(registry, add(registry, content), reason="because", verdict={"verdict": "better"})

    def told() -> list[object]:
        return [registry.models(), registry.versions("viggo"), registry.history("viggo")]

    path = registry.root / "registry.sqlite"
    whole, right, found = path.read_bytes(), told(), 0
    flips = [(at, whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :]) for at in range(3, len(whole), 61)]
    cuts = [(at, whole[:at]) for at in (0, 1, 15, 99, 100, 4095, 4096, 8192, len(whole) - 1)]
    for at, damaged in [*flips, *cuts]:
        path.write_bytes(damaged)
        try:
            assert told() == right, f"not noticed at {at}"
        except DamagedFile:
            found += 1
    assert found > len(flips) / 10  # the rest is unused space
    path.write_bytes(whole)
    assert told() == right


def test_rows_are_compared_with_their_digests(registry: Registry) -> None:
    move(registry, add(registry, "a"), reason="because")
    connection = sqlite3.connect(registry.root / "registry.sqlite")
    connection.execute("DROP TRIGGER moves_unchanged")
    connection.execute("UPDATE moves SET entry = replace(entry, 'because', 'why not')")
    connection.commit()
    assert len(registry.versions("viggo")) == 1
    for call in (lambda: registry.history("viggo"), lambda: registry.resolve("viggo@staging"), registry.models):
        with pytest.raises(DamagedFile, match="does not match its digest"):
            call()
    connection.execute("UPDATE moves SET entry = '{'")
    connection.commit()
    connection.close()
    with pytest.raises(DamagedFile, match=r"registry\.sqlite"):
        registry.history("viggo")


def test_rows_are_compared_with_their_index(registry: Registry) -> None:
    move(registry, add(registry, "a"))
    path = registry.root / "registry.sqlite"
    connection = sqlite3.connect(path)
    digest = connection.execute("SELECT digest FROM moves").fetchone()[0]
    connection.close()
    whole = path.read_bytes()
    assert whole.count(f"viggostaging{digest}".encode()) == 1
    path.write_bytes(whole.replace(f"viggostaging{digest}".encode(), f"viggostaginx{digest}".encode()))
    with pytest.raises(DamagedFile, match="index"):
        registry.current("viggo", "staging")


def test_a_lost_database_is_not_an_empty_one(registry: Registry) -> None:
    add(registry, "a")
    path = registry.root / "registry.sqlite"
    for lose in (path.unlink, lambda: path.write_bytes(b""), lambda: path.write_bytes(b"no database at all" * 99)):
        lose()
        for call in (registry.models, lambda: add(registry, "b"), lambda: move(registry, 1)):
            with pytest.raises(DamagedFile, match=r"registry\.sqlite"):
                call()
    assert (registry.root / "models/viggo/1/manifest.json").exists()


def test_other_files_and_newer_schemas_are_told(registry: Registry) -> None:
    registry.root.mkdir()
    connection = sqlite3.connect(registry.root / "registry.sqlite")
    connection.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(DamagedFile, match="something else"):
        registry.models()
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(TunesmithError, match="schema 2, this one knows 1") as error:
        add(registry, "a")
    assert not isinstance(error.value, DamagedFile)


def test_faults_of_the_system_are_told(registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add(registry, "a")
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(registry.root / "registry.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(TunesmithError, match="another process held it"):
        add(registry, "b")
    assert registry.models(), "readers do not wait for a writer"
    holder.close()

    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(objects, "_copy", full)
    with pytest.raises(DoesNotFit):
        add(registry, "b")
    monkeypatch.undo()
    (tmp_path / "other" / "registry.sqlite").mkdir(parents=True)
    with pytest.raises(TunesmithError, match="cannot be used"):
        add(Registry(tmp_path / "other"), "a")
    add(registry, "b")
    assert_sound(registry)


@pytest.mark.parametrize(
    ("number", "readable", "code"),
    [
        (sqlite3.SQLITE_READONLY, True, "permission"),
        (sqlite3.SQLITE_PERM, True, "permission"),
        (sqlite3.SQLITE_CANTOPEN, False, "permission"),
        (sqlite3.SQLITE_CANTOPEN, True, "error"),
    ],
)
def test_the_registry_of_another_user_is_a_matter_of_permission(
    number: int, readable: bool, code: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry, "a")
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = number
    monkeypatch.setattr("os.access", lambda *_: readable)
    assert registry._database._explained(error).code == code


# --- crashes and races


def test_the_same_added_meanwhile_is_found(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    link, others = objects.Objects._link, list[int]()

    def slow(self: objects.Objects, sha256: str, target: Path) -> None:
        if not others:
            others.append(0)
            others[0] = add(registry, "a")
        link(self, sha256, target)

    monkeypatch.setattr(objects.Objects, "_link", slow)
    assert add(registry, "a") == 1
    assert others == [1]
    assert_sound(registry)


def test_leftovers_are_replaced_where_nothing_can_be_locked(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    add(registry, "a")
    shutil.copytree(registry.root / "models/viggo/1", registry.root / "models/viggo/2")
    (registry.root / "models/viggo/.incoming.tmp-of-somebody").mkdir()
    assert add(registry, "b") == 2
    registry.check(registry.resolve("viggo@2"))
    assert (registry.root / "models/viggo/.incoming.tmp-of-somebody").exists(), "somebody may be alive"


def test_only_leftovers_are_swept(registry: Registry) -> None:
    add(registry, "a")
    add(registry, "b")
    for name in ("7", "notes", "02x"):
        (registry.root / "models/viggo" / name).mkdir()
    for name in ("3", ".incoming.tmp-1", ".2.trash-1"):
        (registry.root / "models/viggo" / name / "deep").mkdir(parents=True)
    (registry.root / "objects/00").mkdir()
    (registry.root / "objects/00/.00ff.tmp-1").write_text("half")
    assert add(registry, "c", "other") == 1
    assert {path.name for path in (registry.root / "models/viggo").iterdir()} == {"1", "2", "7", "notes", "02x"}
    assert_sound(registry)


@pytest.mark.parametrize(
    ("owner", "step"), [(Registry, "_put_in_place"), (Catalog, "insert"), (objects.Objects, "_link")]
)
def test_an_error_between_files_and_commit_leaves_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    def fail(*_: object) -> None:
        raise Interrupted("stopped")

    add(registry, "a")
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(Interrupted):
        add(registry, "b")
    monkeypatch.undo()
    assert [version.number for version in registry.versions("viggo")] == [1]
    assert add(registry, "c") == 2
    assert_sound(registry)


def _mortal(step: int) -> None:
    """Kill this process at its `step`-th change to the disk, just before it, or after a statement not yet committed."""
    left = iter(range(step))

    def patch(owner: Any, name: str, *, dies_after: bool = False) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **named: Any) -> Any:
            result = function(*args, **named) if dies_after else None
            if next(left, None) is None:
                os._exit(9)
            return result if dies_after else function(*args, **named)

        setattr(owner, name, call)

    for owner, names in ((os, "fsync link"), (Path, "rename replace mkdir unlink"), (shutil, "copyfile rmtree")):
        for name in names.split():
            patch(owner, name)
    for name in ("insert", "mark_deleted"):
        patch(Catalog, name, dies_after=True)


def _work(root: Path, source: Path, kind: str) -> None:
    if kind == "add":
        Registry(root).add("viggo", source, facts=FACTS)
    else:
        Registry(root).delete("viggo", 1)


def _killed_at_each_step(start: Path, source: Path, kind: str) -> None:
    """Do one piece of work on copies of a registry, each time killed one step later, until it gets through."""
    for step in range(1000):
        root = shutil.copytree(start, start.with_name(f"{kind}-{step}"), copy_function=shutil.copy)
        child = os.fork()
        if child == 0:
            _mortal(step)
            _work(root, source, kind)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["add", "delete"])
def test_killed_anywhere_a_version_is_whole_or_absent(registry: Registry, tmp_path: Path, kind: str) -> None:
    add(registry, "a")
    add(registry, "b")
    source = adapter(tmp_path / "source", "c")
    # In a process of its own: this one may have threads, which a fork would not copy.
    process = multiprocessing.get_context("spawn").Process(
        target=_killed_at_each_step, args=(registry.root, source, kind)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    killed = [Registry(path) for path in tmp_path.glob(f"{kind}-*")]
    assert len(killed) > 5
    outcomes = set()
    for one in killed:
        numbers = tuple(version.number for version in one.versions("viggo"))
        for version in one.versions("viggo"):
            one.check(version)
        outcomes.add(numbers)
        one.add("viggo", source, facts=FACTS)
        add(one, "d")
        assert [version.number for version in one.versions("viggo")][-2:] == [3, 4]
        assert_sound(one)
    assert outcomes == ({(1, 2), (1, 2, 3)} if kind == "add" else {(1, 2), (2,)})


def _compete(root: Path, who: int) -> tuple[list[int], int, int]:
    """Add versions of one's own, one that all add, and move an alias as often as nobody was quicker."""
    registry, scratch = Registry(root), root.parent / f"scratch-{who}"
    own = [registry.add("viggo", adapter(scratch, f"{who} {n}"), facts=FACTS).number for n in range(4)]
    common = registry.add("common", adapter(scratch, "common"), facts=FACTS).number
    won = 0
    for round_ in range(12):
        seen = registry.current("viggo", "staging")
        try:
            registry.move("viggo", "staging", own[round_ % 4], verdict=None, reason=None, expected=seen)
            won += 1
        except TunesmithError as error:
            if "points at" not in str(error) and "does not exist" not in str(error):
                raise
    return own, common, won


def test_processes_at_once_get_versions_of_their_own(registry: Registry) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.starmap(_compete, [(registry.root, who) for who in range(3)], chunksize=1)
    assert sorted(number for own, _, _ in results for number in own) == list(range(1, 13))
    assert {common for _, common, _ in results} == {1}
    assert len(registry.versions("common")) == 1
    log = registry.history("viggo", "staging")
    assert len(log) == sum(won for _, _, won in results)
    assert [m.before for m in log] == [None, *(m.after for m in log)][: len(log)]
    assert registry.current("viggo", "staging") == log[-1].after
    add(registry, "last")
    assert_sound(registry)


def test_a_refusal_makes_no_registry(tmp_path: Path) -> None:
    store = Registry(tmp_path / "none")
    for refused in (
        lambda: store.rollback("m", "staging"),
        lambda: store.move("m", "staging", 1, verdict=None, reason=None),
        lambda: store.delete("m", 1),
        lambda: store.resolve("m@1"),
        store.models,
    ):
        with contextlib.suppress(RecipeError):
            refused()
        assert list(tmp_path.iterdir()) == []
