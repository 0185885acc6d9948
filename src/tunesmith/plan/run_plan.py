"""What `plan` says: everything about a run that can be known before it, and whether it would start."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DoesNotFit, RecipeError
from tunesmith.core.progress import format_duration, log
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.core.stages import PREPARE
from tunesmith.data.dataset import build_dataset
from tunesmith.data.rehearsal import rehearse
from tunesmith.data.used_rows import PreparedRows, UsedRows
from tunesmith.estimate.communication import Communication
from tunesmith.estimate.hardware import detect_hardware
from tunesmith.estimate.memory import MemoryEstimate, optimizer_state_gib
from tunesmith.estimate.throughput import load_speed
from tunesmith.fetch.reference import ModelFolder, hub_cache, resolve_base
from tunesmith.pipeline.checks import (
    check_base,
    check_prompts,
    check_rows,
    recipe_warnings,
    require_machine,
)
from tunesmith.pipeline.runner import check_prerequisites
from tunesmith.pipeline.runs import open_run
from tunesmith.pipeline.stage_state import stage_states, wanted_stages
from tunesmith.plan.scaling import EstimateInputs, estimate_cluster, scaling
from tunesmith.plan.workload import Workload, estimate_workload
from tunesmith.recipe.launch import Launch, Sharding, SlurmLaunch, local_world_size_of, world_size_of
from tunesmith.recipe.schedule import StepPlan, plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.slurm.jobs import script_path
from tunesmith.tasks import task_for
from tunesmith.tasks.chatml import load_tokenizer

_GIB = 2**30
# A plan answers in a few seconds; `prepare` reads what is left of references.
_SECONDS_OF_A_METRIC = 1.5
_IN_PARTS = {
    "full": ", each with its part of every layer",
    "node": ", each with its part of the layers that every machine keeps once",
}
_BARS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will do and need. Sizes in GiB, those of memory for each process.

    `memory_available`, and `offloaded_available` of the machine's where there is a GPU, are None where the machines are
    elsewhere and the recipe does not say what they have, and `tokens_per_second`, of one process, where this machine
    has not trained yet or is of another kind than those.
    `communication` is what processes send each other in a step, where the recipe says how fast the links are,
    `together` the tokens a second of all, at worst and at best, and `scaling` the same for other numbers of machines or
    processes. `answered` is how many valid rows each validation answers, and `select_best_by` what picks the
    checkpoint. `work` is
    what validation and evaluation read and write.
    """

    name: str
    run: str
    base: str
    method: str
    launch: str
    processes: int
    sharding: Sharding
    counts: dict[str, int]
    sources: dict[str, dict[str, int]]
    blocks: dict[str, int]
    dropped: dict[str, int]
    filtered: dict[str, int]
    cut: dict[str, int]
    unused: dict[str, int]
    copies: dict[str, Any]
    tokens: dict[str, int]
    lengths: dict[str, dict[str, Any]]
    steps: StepPlan
    work: Workload
    passes: str
    known: bool
    answered: int
    select_best_by: str
    memory: MemoryEstimate
    memory_available: float | None
    offloaded_available: float | None
    disk: float
    disk_free: float
    to_fetch: float
    fetch_free: float
    tokens_per_second: float | None
    communication: Communication | None
    together: tuple[float, float] | None
    scaling: list[dict[str, Any]]
    stages: dict[str, str]
    warnings: tuple[str, ...]
    scripts: dict[str, str]
    slurm: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        low, high = self.seconds or (None, None)
        return {**asdict(self), "memory_total": self.memory.total, "seconds": low, "seconds_at_worst": high}

    @property
    def longest(self) -> int:
        """The tokens of the longest row of all splits."""
        return max(int(found["max"]) for found in self.lengths.values())

    @property
    def training_tokens(self) -> int:
        """How many tokens training will read."""
        return round(self.tokens["train"] * self.steps.epochs)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """About how long training takes, from the speed that one process had here before: at best and at worst.

        The same, where nothing is sent or nobody knows how fast.
        """
        if self.together is None:
            return None
        low, high = self.together
        return self.training_tokens / high, self.training_tokens / low

    def require_fit(self) -> None:
        """Raise DoesNotFit where memory or disk does not suffice."""
        if self.disk > self.disk_free:
            raise DoesNotFit(
                f"the checkpoints need about {self.disk:.1f} GiB and {self.disk_free:.1f} are free", where=self.run,
                hint="free some space, or lower train.keep_checkpoints",
            )  # fmt: skip
        if self.to_fetch > self.fetch_free:
            raise DoesNotFit(
                f"the weights take about {self.to_fetch:.1f} GiB and {self.fetch_free:.1f} are free",
                where=str(hub_cache()), hint="free some space, or let HF_HUB_CACHE name another disk",
            )  # fmt: skip
        if self.memory_available is not None and self.memory.total > self.memory_available:
            raise DoesNotFit(
                f"training needs about {self.memory.total:.1f} GiB and {self.memory_available:.1f} are available",
                hint="leave train.micro_batch at auto, set train.activation_checkpointing, lower "
                "data.max_tokens_per_example, use `method: lora` or `qlora`, or take a smaller model",
            )
        if self.offloaded_available is not None and self.memory.offloaded > self.offloaded_available:
            raise DoesNotFit(
                f"each process needs about {self.memory.offloaded:.1f} GiB of the machine's memory for its part of the "
                f"layers, and {self.offloaded_available:.1f} are available",
                hint="take more machines, or leave launch.offload out",
            )

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {self.counts[n]:,}" for n in SPLITS)
        blocks = "; {documents:,} documents in {blocks:,} blocks".format(**self.blocks) if self.blocks["blocks"] else ""
        lost = "".join(
            f"; {kind} {n} x {reason}"
            for kind in ("dropped", "filtered", "cut", "unused")
            for reason, n in getattr(self, kind).items()
        )
        room = f" of {self.memory_available:.1f} available" if self.memory_available is not None else ""
        left = f", of {self.offloaded_available:.1f} available" if self.offloaded_available is not None else ""
        each = " for each process" if self.processes > 1 else ""
        m, s = self.memory, self.steps
        guess = "" if self.known else "; a guess, since this architecture is not described"
        return "\n".join(
            [
                f"run      {self.run}",
                f"model    {self.base}, {self.method}, {m.trainable_parameters:,} weights trained, on {self.launch}"
                f"{_IN_PARTS.get(self.sharding, '')}",
                f"rows     {counts}{blocks}{lost}",
                *(
                    f"source   {name}: {', '.join(f'{s} {n:,}' for s, n in found.items())}"
                    for name, found in self.sources.items()
                    if len(self.sources) > 1
                ),
                f"lengths  {_length_line(self.lengths['train'])}; longest of all {self.longest}",
                f"copies   {_copies_line(self.copies)}",
                f"steps    {s.total_steps} ({s.epochs:.2f} epochs), warmup {s.warmup_steps}, {self._saving()}",
                f"tokens   {self.training_tokens:,} to train on{self.work.tokens_text()}",
                f"time     training {self._time()}{self.work.time_text()}",
                *([f"scaling  {self._scaling()}"] if len(self.scaling) > 1 else []),
                f"passes   {self.passes}",
                f"memory   about {m.total:.1f} GiB{room}{each}{guess} "
                f"(weights {m.weights:.2f}, gradients {m.gradients:.2f}, optimizer {m.optimizer:.2f}, "
                f"activations {m.activations:.2f}, logits {m.logits:.2f}, in pieces {m.fragmentation:.2f}, "
                f"libraries {m.libraries:.2f})"
                + (f"; {m.offloaded:.1f} of the machine's beside it{left}" if m.offloaded else ""),
                f"disk     about {self.disk:.1f} GiB of {self.disk_free:.1f} free"
                + (f"; weights to fetch: {self.to_fetch:.1f} of {self.fetch_free:.1f}" if self.to_fetch else ""),
                f"stages   {', '.join(f'{name} {state}' for name, state in self.stages.items())}",
                *(f"warning  {text}" for text in self.warnings),
                *(f"\n--- {script_path(RunDir(self.run), name)}\n{text}" for name, text in self.scripts.items()),
                *([f"Slurm, asked about the first: {self.slurm}"] if self.slurm else []),
            ]
        )

    def _saving(self) -> str:
        """Return when the run validates and saves, and which checkpoint it keeps as its result."""
        s, asking = self.steps, f", answering {self.answered} rows" if self.answered else ""
        saved = f"checkpoint every {s.save_every_steps}"
        if not self.counts["valid"]:
            return f"{saved}, the last one is the result, as there are no valid rows to choose by"
        return f"validation every {s.valid_every_steps}{asking}, {saved}, the best by {self.select_best_by}"

    def _time(self) -> str:
        if self.seconds is None or self.together is None:
            return "unknown (no measured speed for this model on this hardware)"
        low, high = self.seconds
        measured = f"at {self.tokens_per_second:.0f} tokens/s as measured in an earlier run here"
        if self.processes == 1:
            return f"about {format_duration(low)}, {measured}"
        many = f"with {self.processes} processes"
        if self.communication is None:
            return f"about {format_duration(low)} at best, {many}, each {measured}"
        span = " to ".join(dict.fromkeys(map(format_duration, self.seconds)))
        hours = high * self.processes / 3600
        speed = f"{_range(self.together)} tokens/s"
        return f"about {span} {many}, {speed}, up to {hours:.1f} hours of a process; each {measured}"

    def _scaling(self) -> str:
        """Return tokens a second by the number of machines, or of processes where there is one machine."""
        sizes, best = self.scaling, ", at best" if self.scaling[-1]["at_best"] else ""
        what = "machines" if sizes[-1]["machines"] > 1 else "processes"
        told = (f"{one[what]}: {_range(one['tokens_per_second']) if one['fits'] else 'does not fit'}" for one in sizes)
        return f"tokens/s by {what}{best}: {'; '.join(told)}"


def plan_run(recipe: Path | str, overrides: Sequence[str] = (), *, out: Path | str | None = None) -> RunPlan:
    """Check a recipe, its data and its chat template; return what the run would do and need.

    Once `prepare` is done, what it wrote is read instead of the sources, as the later stages do.

    A plan that memory or disk does not suffice for is returned too: `require_fit` refuses it.

    Raises:
        RecipeError: the recipe is wrong, or a model cannot be had, or cannot read rows so long.
        DataError: the data cannot be read or used.
    """
    opened = open_run(Path(recipe), overrides, out)
    loaded, run = opened.recipe, opened.run
    check_prerequisites(loaded, run)
    base = resolve_base(run, loaded.model.base, weights=False)
    shapes = check_base(loaded, base)
    require_machine(loaded, base)
    tokenizer = load_tokenizer(base, loaded.model.chat_markup)
    task = task_for(loaded.data, tokenizer)
    stages = stage_states(loaded, run)
    is_prepared = stages[PREPARE.name] == "done"
    rows = _prepared(run) if is_prepared else build_dataset(loaded, task, folder=run.recipe_folder, model=base)
    tokens = check_rows(loaded, base, shapes, tokenizer, rows)
    speed = load_speed(base.digest(), loaded.tuning.method)
    known = EstimateInputs(shapes, tokens, detect_hardware(), speed, len(tokenizer.new_ids))
    unread = rehearse(loaded, task, rows, folder=run.recipe_folder, seconds=_SECONDS_OF_A_METRIC)
    later = "the others are read with the answers" if is_prepared else "`prepare` reads all of them before training"
    asked = check_prompts(loaded, shapes.positions, tokenizer, rows)
    warnings = (*recipe_warnings(loaded, base, shapes, tokenizer), *asked, *(f"{note}; {later}" for note in unread))
    return _plan(loaded, run, base, rows, known, stages, warnings)


def _prepared(run: RunDir) -> PreparedRows:
    """Return the rows that `prepare` wrote, and repeat its remarks about them."""
    rows = PreparedRows(run)
    for remark in rows.facts().get("remarks", ()):  # rows of earlier versions have none
        log(remark)
    return rows


def _plan(
    recipe: Recipe,
    run: RunDir,
    base: ModelFolder,
    rows: UsedRows,
    known: EstimateInputs,
    stages: dict[str, str],
    warnings: tuple[str, ...],
) -> RunPlan:
    facts = rows.facts()
    counts = {name: facts["counts"][name] for name in SPLITS}
    steps = plan_steps(recipe, counts["train"])
    shapes, speed = known.shapes, known.speed
    seen = estimate_cluster(recipe, known)
    memory = seen.memory
    to_fetch = shapes.parameters * shapes.stored_bytes / _GIB if base.root.to_fetch else 0.0
    answered = min(recipe.train.valid_rows, counts["valid"]) if recipe.train.valid_metrics else 0
    copies = min(recipe.train.keep_checkpoints + 2, steps.total_steps + 1)  # the best, and one being written
    per_copy = memory.trainable_parameters * 4 / _GIB + optimizer_state_gib(recipe, memory.trainable_parameters)
    best = seen.step_tokens / speed.step_seconds(seen.step_tokens) if speed and seen.together else None
    _refuse_short_turns(recipe, best, seen.step_tokens * steps.save_every_steps)
    return RunPlan(
        name=recipe.name, run=str(run), base=recipe.model.base, method=recipe.tuning.method,
        launch=_where(recipe.launch), processes=seen.processes, sharding=seen.sharding,
        counts=counts, sources=facts["sources"], blocks=facts["blocks"], dropped=facts["dropped"],
        filtered=facts["filtered"], cut=facts["cut"], unused=facts["unused"],
        copies=facts["copies"], tokens=facts["tokens"], lengths=facts["lengths"], steps=steps,
        work=estimate_workload(recipe, rows, steps, seen, speed),
        answered=answered, select_best_by=recipe.train.select_best_by,
        passes=str(seen.division), known=shapes.known, memory=memory, memory_available=seen.memory_available,
        offloaded_available=seen.offloaded_available,
        disk=copies * per_copy + 0.05, to_fetch=to_fetch, fetch_free=_free(hub_cache()), disk_free=_free(run.path),
        tokens_per_second=seen.tokens_per_second, communication=seen.communication, together=seen.together,
        scaling=[one.to_json() for one in scaling(recipe, known)] if seen.together else [],
        stages=stages, warnings=warnings, **_jobs(recipe, run),
    )  # fmt: skip


def _refuse_short_turns(recipe: Recipe, speed: float | None, interval: float) -> None:
    """Raise RecipeError where a job would end before it comes to its first checkpoint, even at the best.

    The best is that every process has the speed that was measured here.

    Args:
        recipe: its `launch` may have a time limit.
        speed: tokens a second of one process, where it is known.
        interval: tokens between two checkpoints.
    """
    launch = recipe.launch
    if not isinstance(launch, SlurmLaunch) or launch.time_limit_minutes is None or speed is None:
        return
    needed = interval / (speed * world_size_of(launch)) / 60
    turn = launch.time_limit_minutes - launch.grace_minutes
    if needed > turn:
        raise RecipeError(
            f"a job trains for {turn} minutes at most, and a checkpoint needs {needed:.0f} at the speed measured here",
            where="launch.time_limit_minutes", hint="ask for more, or lower train.save_every_steps",
        )  # fmt: skip


def _where(launch: Launch) -> str:
    machines = f" on each of {launch.nodes} machines" if isinstance(launch, SlurmLaunch) and launch.nodes > 1 else ""
    count = local_world_size_of(launch)
    return launch.on if launch.on == "local" else f"{launch.on}, {count} process{'es' * (count > 1)}{machines}"


def _jobs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return the scripts of a run's jobs, and what Slurm says of the first one where it can be asked.

    Raises:
        RecipeError: Slurm would not take one of them.
    """
    if recipe.launch.on != "slurm":
        return {"scripts": {}, "slurm": None}
    from tunesmith.pipeline.submit import batch_scripts
    from tunesmith.slurm.client import estimate_start, is_available

    found = {job.stage: text for job, text in batch_scripts(recipe, run, wanted_stages(recipe))}
    said = [estimate_start(text) for text in found.values()] if is_available() else [None]
    return {"scripts": found, "slurm": said[0]}


def _free(place: Path) -> float:
    """Return the GiB that are free on the disk of a place that need not be there yet."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / _GIB


def _range(low_and_high: tuple[float, float]) -> str:
    return " to ".join(dict.fromkeys(f"{one:,.0f}" for one in low_and_high))


def _length_line(lengths: dict[str, Any]) -> str:
    """Return the histogram as a line of bars, and its numbers."""
    counts = [count for _, _, count in lengths["histogram"]]
    bars = "".join(_BARS[-(-8 * count // max(counts))] for count in counts)
    return (
        f"|{bars}| of training rows, from 0 to {lengths['max']} tokens; "
        f"median {lengths['median']}, 95 % up to {lengths['p95']}"
    )


def _copies_line(copies: dict[str, Any]) -> str:
    """Return how many rows say what a training row says, exactly and nearly."""
    names = {"duplicates": "within train", "valid": "valid rows in train", "test": "test rows in train",
             "left_out": "left out of train"}  # fmt: skip
    found = ((text, copies[key]) for key, text in names.items() if key in copies)
    return ", ".join(f"{text} {one['exact']} + {one['near']} nearly" for text, one in found)
