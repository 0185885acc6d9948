"""The one place that knows where things live in a run folder."""

from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, read_json

SPLITS = ("train", "valid", "test")


class RunDir:
    """Paths below `runs/NAME/ID`. Nothing inside is absolute, so the folder can be moved or copied.

    Args:
        path: the folder, which need not exist.
        recipe_folder: the folder of the recipe that is being run; by default the one that the run recorded.
    """

    def __init__(self, path: Path | str, recipe_folder: Path | None = None) -> None:
        self.path = Path(path)
        self._recipe_folder = recipe_folder

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def existing(cls, path: Path | str) -> "RunDir":
        """Return the run at `path`; raise RecipeError where there is none."""
        run = cls(path)
        if not run.resolved_recipe.exists():
            near = find_run(run.path)
            hint = f"did you mean {near}?" if near else "name a folder that `tunesmith run` wrote"
            raise RecipeError("is not a run folder", where=str(path), hint=hint)
        return run

    @property
    def recipe(self) -> Path:
        """The recipe as the user wrote it."""
        return self.path / "recipe.yaml"

    @property
    def resolved_recipe(self) -> Path:
        """The recipe with every default and override written out."""
        return self.path / "recipe.resolved.yaml"

    @property
    def environment(self) -> Path:
        """What machine and which versions the run saw."""
        return self.path / "environment.json"

    @property
    def recipe_folder(self) -> Path:
        """The folder that the recipe's relative paths start at.

        It is the recipe's folder, or `recipe_files` if the recipe is gone and the rows are prepared.
        """
        if self._recipe_folder is not None:
            return self._recipe_folder
        gone = self.manifest("prepare") is not None and not self.recipe_exists
        return self.recipe_files if gone else self.recorded_recipe_folder

    @property
    def recorded_recipe_folder(self) -> Path:
        """The folder that held the recipe when the run last started from it."""
        return self.path / str(read_json(self.environment)["recipe_folder"])

    @property
    def recipe_exists(self) -> bool:
        """Whether the recipe that the run last started from still exists."""
        name = read_json(self.environment).get("recipe_file", "")
        return (self.recorded_recipe_folder / str(name)).exists()

    @property
    def recipe_files(self) -> Path:
        """Copies of what evaluation needs from the recipe's folder: metrics of the user's own, and the database."""
        return self.path / "recipe_files"

    @property
    def lock(self) -> Path:
        """Held while a process writes to the run."""
        return self.path / "logs" / "lock"

    def rank_log(self, rank: int) -> Path:
        """What another process of the run than the first said."""
        return self.path / "logs" / f"rank-{rank}.log"

    def rank_stacks(self, rank: int) -> Path:
        """Where the code of a process stood when it had not heard of the others for long."""
        return self.path / "logs" / f"stacks-rank-{rank}.txt"

    @property
    def attempts(self) -> Path:
        """At which steps training ended without a word; there only while it goes on, or when it has."""
        return self.path / "logs" / "attempts.json"

    @property
    def launch(self) -> Path:
        """The scripts of the run's jobs, and which jobs there are."""
        return self.path / "launch"

    @property
    def report(self) -> Path:
        """The report for people."""
        return self.path / "report.html"

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.path / name

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """Return the manifest of a finished stage, else None."""
        path = self.stage(stage) / MANIFEST
        return read_json(path) if path.exists() else None

    def examples(self, split: str) -> Path:
        """Return the parsed examples of a split."""
        return self.stage("prepare") / "examples" / f"{split}.jsonl"

    def tokens(self, split: str) -> Path:
        """Return the token file of a split."""
        return self.stage("prepare") / "tokens" / f"{split}.safetensors"

    @property
    def ledger(self) -> Path:
        """One line a source row: where it went and why."""
        return self.stage("prepare") / "rows.jsonl"

    @property
    def metrics(self) -> Path:
        """One line a training step or validation."""
        return self.stage("train") / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.stage("train") / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Return the checkpoint of a step."""
        return self.checkpoints / f"step-{step:06d}"

    def valid_answers(self, step: int) -> Path:
        """Return what was answered to valid rows at a step, and what that scored."""
        return self.stage("train") / "answers" / f"step-{step:06d}.jsonl"

    def evaluation(self, name: str) -> Path:
        """Return the folder of what `base` or `tuned` answered."""
        return self.stage("evaluate") / name

    def track(self, name: str) -> Path:
        """Return the folder of a tracker: what it keeps, and what it was told."""
        return self.path / "track" / name

    @property
    def verdict(self) -> Path:
        """The verdict, base against tuned."""
        return self.stage("evaluate") / "verdict.json"


def find_run(path: Path) -> Path | None:
    """Return the run that a folder is in, else the newest run in it, for a hint; None if there is neither."""
    above = (folder for folder in path.parents if RunDir(folder).resolved_recipe.exists())
    below = sorted(path.glob(f"*/{RunDir('').resolved_recipe}"), key=lambda file: file.stat().st_mtime_ns)
    return next(above, below[-1].parent if below else None)
