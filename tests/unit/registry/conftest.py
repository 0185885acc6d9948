"""A registry in memory, small folders to add to it, and an invariant that must hold after every operation."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.registry.store import Registry

FACTS = {"run": "runs/viggo/1", "recipe": "aa", "base": {"reference": "org/base", "digest": "bb"}, "verdict": None}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder in memory if the system has one: thousands of fsyncs take a minute on a disk."""
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
    """Assert that every version is intact, and that the registry has no other files."""
    expected = {"registry.sqlite", ".lock"}
    for model in registry.models():
        assert set(model.aliases.values()) <= set(model.versions)
        for version in registry.versions(model.name):
            registry.verify(version)
            folder = registry.folder(version).relative_to(registry.root).as_posix()
            expected |= {f"{folder}/{name}" for name in (*version.files, "manifest.json")}
            expected |= {f"objects/{(sha := file['sha256'])[:2]}/{sha}" for file in version.files.values()}
    assert tree(registry.root) == expected


def move(registry: Registry, version: int, alias: str = "staging", **more: Any) -> None:
    """Move an alias of viggo."""
    registry.move("viggo", alias, version, **{"verdict": None, "reason": None, **more})
