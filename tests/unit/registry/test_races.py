"""Killed processes and concurrent writers leave every version either complete or absent."""

import contextlib
import fcntl
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.registry.conftest import FACTS, adapter, add, assert_sound

from tunesmith.core.errors import Interrupted, RecipeError, TunesmithError
from tunesmith.registry import object_store
from tunesmith.registry.catalog import Catalog
from tunesmith.registry.store import Registry


def test_add_finds_an_identical_version_added_concurrently(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    link, others = object_store.ObjectStore._link, list[int]()

    def slow(self: object_store.ObjectStore, sha256: str, target: Path) -> None:
        if not others:
            others.append(0)
            others[0] = add(registry, "a")
        link(self, sha256, target)

    monkeypatch.setattr(object_store.ObjectStore, "_link", slow)
    assert add(registry, "a") == 1
    assert others == [1]
    assert_sound(registry)


def test_add_replaces_leftovers_on_a_file_system_without_locks(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    add(registry, "a")
    shutil.copytree(registry.root / "models/viggo/1", registry.root / "models/viggo/2")
    (registry.root / "models/viggo/.incoming.tmp-50be0d1e").mkdir()
    assert add(registry, "b") == 2
    registry.verify(registry.resolve("viggo@2"))
    assert (registry.root / "models/viggo/.incoming.tmp-50be0d1e").exists(), "its writer may be alive"


def test_garbage_collection_removes_only_leftovers(registry: Registry) -> None:
    add(registry, "a")
    add(registry, "b")
    for name in ("7", "notes", "02x"):
        (registry.root / "models/viggo" / name).mkdir()
    for name in ("3", ".incoming.tmp-00000001", ".2.trash-00000001"):
        (registry.root / "models/viggo" / name / "deep").mkdir(parents=True)
    (registry.root / "objects/00").mkdir()
    (registry.root / "objects/00/.00ff.tmp-00000001").write_text("half")
    assert add(registry, "c", "other") == 1
    assert {path.name for path in (registry.root / "models/viggo").iterdir()} == {"1", "2", "7", "notes", "02x"}
    assert_sound(registry)


@pytest.mark.parametrize(
    ("owner", "step"), [(object_store.ObjectStore, "publish"), (Catalog, "insert"), (object_store.ObjectStore, "_link")]
)
def test_error_between_files_and_commit_leaves_nothing(
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


def _die_at_step(step: int) -> None:
    """Make this process exit just before its `step`-th change to the disk, or after an uncommitted SQL statement."""
    remaining = iter(range(step))

    def patch(owner: Any, name: str, *, dies_after: bool = False) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **named: Any) -> Any:
            result = function(*args, **named) if dies_after else None
            if next(remaining, None) is None:
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
    """Run an operation on copies of a registry, each time killed one step later, until it completes."""
    for step in range(1000):
        root = shutil.copytree(start, start.with_name(f"{kind}-{step}"), copy_function=shutil.copy)
        child = os.fork()
        if child == 0:
            _die_at_step(step)
            _work(root, source, kind)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["add", "delete"])
def test_kill_at_any_step_leaves_a_version_complete_or_absent(registry: Registry, tmp_path: Path, kind: str) -> None:
    add(registry, "a")
    add(registry, "b")
    source = adapter(tmp_path / "source", "c")
    # In a separate process, because this one may have threads, which fork does not copy.
    process = multiprocessing.get_context("spawn").Process(
        target=_killed_at_each_step, args=(registry.root, source, kind)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    killed = [Registry(path) for path in tmp_path.glob(f"{kind}-*")]
    assert len(killed) > 5
    outcomes = set()
    for survivor in killed:
        numbers = tuple(version.number for version in survivor.versions("viggo"))
        for version in survivor.versions("viggo"):
            survivor.verify(version)
        outcomes.add(numbers)
        survivor.add("viggo", source, facts=FACTS)
        add(survivor, "d")
        assert [version.number for version in survivor.versions("viggo")][-2:] == [3, 4]
        assert_sound(survivor)
    assert outcomes == ({(1, 2), (1, 2, 3)} if kind == "add" else {(1, 2), (2,)})


def _compete(root: Path, worker: int) -> tuple[list[int], int, int]:
    """Add four versions, add one that all workers add, and try to move an alias; return (numbers, number, moves)."""
    registry, scratch = Registry(root), root.parent / f"scratch-{worker}"
    own = [registry.add("viggo", adapter(scratch, f"{worker} {n}"), facts=FACTS).number for n in range(4)]
    common = registry.add("common", adapter(scratch, "common"), facts=FACTS).number
    won = 0
    for round_ in range(12):
        seen = registry.alias_target("viggo", "staging")
        try:
            registry.move("viggo", "staging", own[round_ % 4], verdict=None, reason=None, expected=seen)
            won += 1
        except TunesmithError as error:
            if error.code != "alias-moved":
                raise
    return own, common, won


def test_concurrent_processes_get_different_versions(registry: Registry) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.starmap(_compete, [(registry.root, worker) for worker in range(3)], chunksize=1)
    assert sorted(number for own, _, _ in results for number in own) == list(range(1, 13))
    assert {common for _, common, _ in results} == {1}
    assert len(registry.versions("common")) == 1
    log = registry.history("viggo", "staging")
    assert len(log) == sum(won for _, _, won in results)
    assert [m.before for m in log] == [None, *(m.after for m in log)][: len(log)]
    assert registry.alias_target("viggo", "staging") == log[-1].after
    add(registry, "last")
    assert_sound(registry)


def test_failed_calls_create_no_registry(tmp_path: Path) -> None:
    store = Registry(tmp_path / "none")
    for call in (
        lambda: store.rollback("m", "staging"),
        lambda: store.move("m", "staging", 1, verdict=None, reason=None),
        lambda: store.delete("m", 1),
        lambda: store.resolve("m@1"),
        store.models,
    ):
        with contextlib.suppress(RecipeError):
            call()
        assert list(tmp_path.iterdir()) == []
