"""A recipe with two data files, and a machine without Slurm."""

from pathlib import Path

import pytest
from tests.support.tiny import recipe as write_recipe


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path) -> Path:
    path = write_recipe(tmp_path, tiny)
    (tmp_path / "more.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("Say", "Tell"))
    return path


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide Slurm's commands, which may be installed here without a cluster."""
    monkeypatch.setattr("tunesmith.slurm.client.is_available", lambda: False)
