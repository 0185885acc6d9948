"""The reference pages say what the code does."""

import subprocess
import sys
from pathlib import Path

from tests.contract.sources import ROOT

from tunesmith.recipe.launch import SlurmLaunch
from tunesmith.recipe.load import load_recipe
from tunesmith.slurm.script import Job, batch_script


def docs(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_the_reference_pages_are_current() -> None:
    done = docs(ROOT / "scripts" / "docs", "--check")
    assert done.returncode == 0, done.stderr


def test_a_stale_page_is_noticed_and_made_again(tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "docs"
    script.write_text((ROOT / "scripts" / "docs").read_text(encoding="utf-8"), encoding="utf-8")
    assert docs(script).returncode == 0
    page = tmp_path / "docs" / "recipe.md"
    page.write_text(page.read_text(encoding="utf-8").replace("learning_rate", "rate_of_learning"), encoding="utf-8")
    done = docs(script, "--check")
    assert done.returncode == 1
    assert "docs/recipe.md is stale" in done.stderr
    assert "docs/cli.md" not in done.stderr


def test_wrong_usage_is_refused() -> None:
    assert docs(ROOT / "scripts" / "docs", "--chekc").returncode == 2


def test_the_batch_script_of_the_guide_is_what_is_written() -> None:
    made = load_recipe(ROOT / "recipes" / "gemma-chat-slurm" / "recipe.yaml")
    assert isinstance(made.launch, SlurmLaunch)
    text = batch_script(
        Job(made.name, "train", "train runs/gemma --on local", on_all_ranks=True), made.launch, "runs/gemma"
    )
    assert f"```bash\n{text}```" in (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
