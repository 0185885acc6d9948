"""The layout of a run folder."""

from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, digest_of, read_json

HELD_OUT = ("valid", "test")
SPLITS = ("train", *HELD_OUT)
_PACKAGES = ("tunesmith", "torch", "transformers", "peft", "tokenizers", "bitsandbytes")


def seed_name(seed: int) -> str:
    """Return the name of the model of a further seed, as `base` and `tuned` are names, and of its folders."""
    return f"seed-{seed}"


class RunDir:
    """The paths of a run folder. The files in it contain no absolute path, so that it can be moved or copied.

    Args:
        path: the folder, which need not exist.
        recipe_folder: the folder of the recipe being run; by default the folder that the run recorded.
        prepared: the folder of the prepared rows; by default that in the run.

    Attributes:
        recipe: the recipe as the user wrote it.
        resolved_recipe: the recipe with every default and override written out.
        environment: the machine and the versions of packages that the run used.
        recipe_files: copies of the files in the recipe's folder that evaluation reads: custom metrics and the database.
        lock: the lock that a process holds while it writes to the run.
        attempts: the steps at which training was killed (train/crash_loop.py); only during training or after a kill.
        launch: the scripts and the list of the run's Slurm jobs.
        report: the HTML report.
        comparison_page: the HTML page of the last comparison of several models on its test rows.
        ledger: one line per source row, with its split and its use or the reason why it was dropped.
        metrics: one line per training step or validation.
        checkpoints: the folder of checkpoints.
        verdict: the comparison of base and tuned.
    """

    def __init__(self, path: Path | str, recipe_folder: Path | None = None, *, prepared: Path | None = None) -> None:
        self.path = Path(path)
        self._recipe_folder, self._prepared = recipe_folder, prepared
        self.recipe = self.path / "recipe.yaml"
        self.resolved_recipe = self.path / "recipe.resolved.yaml"
        self.environment = self.path / "environment.json"
        self.recipe_files = self.path / "recipe_files"
        self.lock = self.path / "logs" / "lock"
        self.attempts = self.path / "logs" / "attempts.json"
        self.launch = self.path / "launch"
        self.report = self.path / "report.html"
        self.comparison_page = self.path / "comparison.html"
        self.ledger = self.stage("prepare") / "rows.jsonl"
        self.metrics = self.path / "train" / "metrics.jsonl"
        self.checkpoints = self.path / "train" / "checkpoints"
        self.verdict = self.path / "evaluate" / "verdict.json"

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def existing(cls, path: Path | str) -> "RunDir":
        """Return the run at `path`; raise RecipeError if there is none."""
        run = cls(path)
        if not run.resolved_recipe.exists():
            near = find_run(run.path)
            hint = f"did you mean {near}?" if near else "name a folder that `tunesmith run` wrote"
            raise RecipeError("is not a run folder", where=str(path), code="not-a-run", hint=hint)
        return run

    @property
    def recipe_folder(self) -> Path:
        """The folder to which the recipe's relative paths refer.

        It is the recipe's folder, or `recipe_files` if the recipe no longer exists and the rows are prepared.
        """
        if self._recipe_folder is not None:
            return self._recipe_folder
        use_copies = self.manifest("prepare") is not None and not self.recipe_exists
        return self.recipe_files if use_copies else self.recorded_recipe_folder

    @property
    def recorded_recipe_folder(self) -> Path:
        """The folder of the recipe when the run last started from it."""
        return self.path / str(read_json(self.environment)["recipe_folder"])

    @property
    def recipe_exists(self) -> bool:
        """Whether the recipe that the run last started from still exists."""
        name = read_json(self.environment).get("recipe_file", "")
        return (self.recorded_recipe_folder / str(name)).exists()

    def rank_log(self, rank: int) -> Path:
        """Return the log of a rank other than 0."""
        return self.path / "logs" / f"rank-{rank}.log"

    def rank_stacks(self, rank: int) -> Path:
        """Return the file for the stack traces of a rank that waited too long for the others."""
        return self.path / "logs" / f"stacks-rank-{rank}.txt"

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self._prepared if self._prepared and name == "prepare" else self.path / name

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """Return the manifest of a stage; None if the stage is not finished."""
        path = self.stage(stage) / MANIFEST
        return read_json(path) if path.exists() else None

    @property
    def data_digest(self) -> str | None:
        """The digest of the prepared rows; None if they are not prepared."""
        files = (self.manifest("prepare") or {}).get("files")
        return digest_of(files) if files else None

    @property
    def row_counts(self) -> dict[str, int]:
        """The number of prepared rows in each split."""
        counts = (self.manifest("prepare") or {}).get("counts") or {}
        return {split: counts[split] for split in SPLITS if split in counts}

    @property
    def package_versions(self) -> dict[str, str]:
        """The version of each package that decides what training computes, when the run was started."""
        recorded = read_json(self.environment) if self.environment.exists() else {}
        return {package: recorded[package] for package in _PACKAGES if recorded.get(package)}

    def examples(self, split: str) -> Path:
        """Return the file of the parsed examples of a split."""
        return self.stage("prepare") / "examples" / f"{split}.jsonl"

    def columns(self, split: str) -> Path:
        """Return the file of the source columns of a split's rows; it exists if a custom metric takes `rows`."""
        return self.stage("prepare") / "columns" / f"{split}.jsonl"

    def tokens(self, split: str) -> Path:
        """Return the token file of a split."""
        return self.stage("prepare") / "tokens" / f"{split}.safetensors"

    def checkpoint(self, step: int) -> Path:
        """Return the checkpoint of a step."""
        return self.checkpoints / f"step-{step:06d}"

    def valid_answers(self, step: int) -> Path:
        """Return the file of the answers to valid rows at a step, with their scores."""
        return self.stage("train") / "answers" / f"step-{step:06d}.jsonl"

    def evaluation(self, name: str) -> Path:
        """Return the folder with the answers and scores of `base`, `tuned` or the model of another seed."""
        return self.stage("evaluate") / name

    def incumbent(self, version: str) -> Path:
        """Return the file of the verdict on the tuned model against a version of the registry, such as `viggo@3`."""
        return self.path / "incumbents" / f"{version}.json"

    @property
    def incumbent_verdicts(self) -> list[Path]:
        """The files of all verdicts against versions of the registry; the name without its suffix is the version."""
        return sorted((self.path / "incumbents").glob("*.json"))

    def comparison(self, digest: str) -> Path:
        """Return the folder with the answers and scores of a model that the run did not train, by its digest."""
        return self.path / "comparisons" / digest[:16]

    def exported(self, name: str) -> Path:
        """Return the default folder of an export."""
        return self.stage("export") / name

    def replicate(self, seed: int) -> "RunDir":
        """Return the folder of the training with a further seed, on the run's prepared rows."""
        folder = self.stage("replicate") / seed_name(seed)
        return RunDir(folder, self.recipe_folder, prepared=self.stage("prepare"))

    def further_set(self, name: str) -> "RunDir":
        """Return the folder of a further held-out set of `evaluate.also`; it has rows as a run has them."""
        return RunDir(self.path / "also" / name, self.recipe_folder)

    def set_evaluation(self, name: str, model: str) -> Path:
        """Return the folder with a model's answers and scores on a further held-out set."""
        return self.stage("evaluate") / "also" / name / model

    def track(self, name: str) -> Path:
        """Return the folder of a tracker: its own files, and the record of the metrics sent to it."""
        return self.path / "track" / name


def find_run(path: Path) -> Path | None:
    """Return the run that contains a folder, else the newest run in it; None if there is neither. For hints."""
    enclosing = (folder for folder in path.parents if RunDir(folder).resolved_recipe.exists())
    inside = sorted(path.glob(f"*/{RunDir('').resolved_recipe}"), key=lambda file: file.stat().st_mtime_ns)
    return next(enclosing, inside[-1].parent if inside else None)
