"""No damage of files or of the database goes unnoticed."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from tests.unit.registry.conftest import FACTS, add, assert_sound, move

from tunesmith.core.errors import DamagedFile, DoesNotFit, TunesmithError
from tunesmith.core.files import seal_folder
from tunesmith.registry import database, object_store
from tunesmith.registry.store import Registry


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "deep/notes.txt"])
def test_a_flipped_byte_is_found(registry: Registry, name: str) -> None:
    add(registry, "weights")
    version = registry.resolve("viggo@1")
    path = registry.folder(version) / name
    path.chmod(0o644)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DamagedFile, match=name) as error:
        registry.verify(version)
    assert error.value.exit_code == 6
    manifest = registry.folder(version) / "manifest.json"
    manifest.unlink()
    seal_folder(manifest.parent, model="viggo", facts=FACTS)
    with pytest.raises(DamagedFile, match=name):
        registry.verify(version)


def test_missing_added_and_rewritten_files_are_found(registry: Registry) -> None:
    add(registry, "weights")
    version = registry.resolve("viggo@1")
    folder = registry.folder(version)
    (folder / "extra.py").write_text("")
    with pytest.raises(DamagedFile, match=r"extra\.py: does not belong"):
        registry.verify(version)
    (folder / "extra.py").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "facts": {}}))
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        registry.verify(version)
    (folder / "manifest.json").unlink()
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        registry.verify(version)
    shutil.rmtree(folder)
    with pytest.raises(DamagedFile, match="missing"):
        registry.verify(version)


def test_a_damaged_object_does_not_get_into_a_new_version(registry: Registry) -> None:
    add(registry, "weights")
    damaged = registry.folder(registry.resolve("viggo@1")) / "deep" / "notes.txt"
    damaged.chmod(0o644)
    damaged.write_text("the same, but for a flip")
    assert add(registry, "other weights") == 2
    registry.verify(registry.resolve("viggo@2"))
    with pytest.raises(DamagedFile):
        registry.verify(registry.resolve("viggo@1"))


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
        registry.alias_target("viggo", "staging")


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

    monkeypatch.setattr(object_store, "_copy", full)
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
    assert registry._database._translate(error).code == code
