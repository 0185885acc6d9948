"""A recipe with two data files, and machines for its plan."""

from pathlib import Path

import pytest
from tests.support.tiny import recipe as write_recipe

from tunesmith.estimate.hardware import Hardware
from tunesmith.plan import run_plan

MIX = [
    "data.source=[{file: rows.jsonl, weight: 1.5}, {file: more.jsonl, name: more}]",
    "data.filters=[{column: tree, max: 15}]", "data.train_rows=0.7", "data.duplicates=drop",
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path) -> Path:
    path = write_recipe(tmp_path, tiny)
    (tmp_path / "more.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("Say", "Tell"))
    return path


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide Slurm's commands, which may be installed here without a cluster."""
    monkeypatch.setattr("tunesmith.slurm.client.is_available", lambda: False)


@pytest.fixture
def same_machine(monkeypatch: pytest.MonkeyPatch, no_slurm: None) -> None:
    """Fix the free memory and disk space, and check all references, however slow the machine is."""
    monkeypatch.setattr(run_plan, "_REHEARSAL_SECONDS", 3600.0)
    monkeypatch.setattr(run_plan, "detect_hardware", lambda: Hardware("cpu", has_bf16=False, memory_gib=12.0))
    monkeypatch.setattr(run_plan, "free_gib", lambda _: 100.0)
