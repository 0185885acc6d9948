"""The generated pages in docs/ are current."""

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


def test_a_stale_page_is_found_and_written_again(tmp_path: Path) -> None:
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


def test_unknown_options_of_scripts_docs_are_refused() -> None:
    assert docs(ROOT / "scripts" / "docs", "--chekc").returncode == 2


def test_the_batch_script_in_the_guide_is_the_generated_one() -> None:
    recipe = load_recipe(ROOT / "recipes" / "gemma-chat-slurm" / "recipe.yaml")
    assert isinstance(recipe.launch, SlurmLaunch)
    text = batch_script(
        Job(recipe.name, "train", "train runs/gemma --on local", on_all_ranks=True), recipe.launch, "runs/gemma"
    )
    assert f"```bash\n{text}```" in (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
