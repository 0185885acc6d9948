"""Damage to the registry's files or to its database is detected."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.unit.registry.conftest import FACTS, add, assert_sound, move

from tunesmith.core.errors import DamagedFile, DoesNotFit, TunesmithError
from tunesmith.core.files import seal_folder
from tunesmith.registry import database, object_store
from tunesmith.registry.store import Registry


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "deep/notes.txt"])
def test_verify_finds_a_flipped_byte(registry: Registry, name: str) -> None:
    add(registry, "weights")
    version = registry.resolve("viggo@1")
    path = registry.folder(version) / name
    path.chmod(0o644)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with raises(DamagedFile, "damaged-file", where=name) as error:
        registry.verify(version)
    assert error.value.exit_code == 6
    manifest = registry.folder(version) / "manifest.json"
    manifest.unlink()
    seal_folder(manifest.parent, model="viggo", facts=FACTS)
    with raises(DamagedFile, "damaged-file", where=name):
        registry.verify(version)


def test_verify_finds_missing_extra_and_rewritten_files(registry: Registry) -> None:
    add(registry, "weights")
    version = registry.resolve("viggo@1")
    folder = registry.folder(version)
    (folder / "extra.py").write_text("")
    with raises(DamagedFile, "damaged-file", where="extra.py"):
        registry.verify(version)
    (folder / "extra.py").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "facts": {}}))
    with raises(DamagedFile, "damaged-file", where="manifest.json"):
        registry.verify(version)
    (folder / "manifest.json").unlink()
    with raises(DamagedFile, "damaged-file", where="manifest.json"):
        registry.verify(version)
    shutil.rmtree(folder)
    with raises(DamagedFile, "damaged-file"):
        registry.verify(version)


def test_add_replaces_a_damaged_object(registry: Registry) -> None:
    add(registry, "weights")
    damaged = registry.folder(registry.resolve("viggo@1")) / "deep" / "notes.txt"
    damaged.chmod(0o644)
    damaged.write_text("the same, but for a flip")
    assert add(registry, "other weights") == 2
    registry.verify(registry.resolve("viggo@2"))
    with raises(DamagedFile, "damaged-file"):
        registry.verify(registry.resolve("viggo@1"))


def test_damage_anywhere_in_the_database_is_detected(registry: Registry) -> None:
    for content in "ab":
        move(registry, add(registry, content), reason="because", verdict={"verdict": "better"})

    def read_all() -> list[object]:
        return [registry.models(), registry.versions("viggo"), registry.history("viggo")]

    path = registry.root / "registry.sqlite"
    intact, content, detected = path.read_bytes(), read_all(), 0
    flips = [(at, intact[:at] + bytes([intact[at] ^ 0x81]) + intact[at + 1 :]) for at in range(3, len(intact), 61)]
    cuts = [(at, intact[:at]) for at in (0, 1, 15, 99, 100, 4095, 4096, 8192, len(intact) - 1)]
    for at, damaged in [*flips, *cuts]:
        path.write_bytes(damaged)
        try:
            assert read_all() == content, f"not detected at byte {at}"
        except DamagedFile:
            detected += 1
    assert detected > len(flips) / 10  # the rest is unused space
    path.write_bytes(intact)
    assert read_all() == content


def test_entries_are_compared_with_their_digests(registry: Registry) -> None:
    move(registry, add(registry, "a"), reason="because")
    connection = sqlite3.connect(registry.root / "registry.sqlite")
    connection.execute("DROP TRIGGER moves_unchanged")
    connection.execute("UPDATE moves SET entry = replace(entry, 'because', 'why not')")
    connection.commit()
    assert len(registry.versions("viggo")) == 1
    for call in (lambda: registry.history("viggo"), lambda: registry.resolve("viggo@staging"), registry.models):
        with raises(DamagedFile, "damaged-file", "digest", where="registry.sqlite"):
            call()
    connection.execute("UPDATE moves SET entry = '{'")
    connection.commit()
    connection.close()
    with raises(DamagedFile, "damaged-file", where="registry.sqlite"):
        registry.history("viggo")


def test_columns_are_compared_with_their_index(registry: Registry) -> None:
    move(registry, add(registry, "a"))
    path = registry.root / "registry.sqlite"
    connection = sqlite3.connect(path)
    digest = connection.execute("SELECT digest FROM moves").fetchone()[0]
    connection.close()
    whole = path.read_bytes()
    assert whole.count(f"viggostaging{digest}".encode()) == 1
    path.write_bytes(whole.replace(f"viggostaging{digest}".encode(), f"viggostaginx{digest}".encode()))
    with raises(DamagedFile, "damaged-file", "index"):
        registry.alias_target("viggo", "staging")


def test_missing_database_of_existing_models_is_damage(registry: Registry) -> None:
    add(registry, "a")
    path = registry.root / "registry.sqlite"
    for lose in (path.unlink, lambda: path.write_bytes(b""), lambda: path.write_bytes(b"no database at all" * 99)):
        lose()
        for call in (registry.models, lambda: add(registry, "b"), lambda: move(registry, 1)):
            with raises(DamagedFile, "damaged-file", where="registry.sqlite"):
                call()
    assert (registry.root / "models/viggo/1/manifest.json").exists()


def test_foreign_database_and_newer_schema_are_refused(registry: Registry) -> None:
    registry.root.mkdir()
    connection = sqlite3.connect(registry.root / "registry.sqlite")
    connection.execute("CREATE TABLE songs (title TEXT)")
    with raises(DamagedFile, "damaged-file", where="registry.sqlite"):
        registry.models()
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with raises(TunesmithError, "registry-schema", "schema 2", "schema 1"):
        add(registry, "a")


def test_system_faults_have_codes(registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add(registry, "a")
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(registry.root / "registry.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with raises(TunesmithError, "locked", where="registry.sqlite"):
        add(registry, "b")
    assert registry.models(), "readers do not wait for a writer"
    holder.close()

    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(object_store, "_copy", full)
    with pytest.raises(DoesNotFit):
        add(registry, "b")
    monkeypatch.undo()
    (tmp_path / "other" / "registry.sqlite").mkdir(parents=True)
    with raises(TunesmithError, "registry-unusable", where="registry.sqlite"):
        add(Registry(tmp_path / "other"), "a")
    add(registry, "b")
    assert_sound(registry)


@pytest.mark.parametrize(
    ("number", "readable", "code"),
    [
        (sqlite3.SQLITE_READONLY, True, "permission"),
        (sqlite3.SQLITE_PERM, True, "permission"),
        (sqlite3.SQLITE_CANTOPEN, False, "permission"),
        (sqlite3.SQLITE_CANTOPEN, True, "registry-unusable"),
        (sqlite3.SQLITE_FULL, True, "disk-full"),
    ],
)
def test_sqlite_errors_are_translated(
    number: int, readable: bool, code: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry, "a")
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = number

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("os.access", lambda *_: readable)
    monkeypatch.setattr(sqlite3, "connect", fail)
    with pytest.raises(TunesmithError) as translated:
        registry.models()
    assert translated.value.code == code
