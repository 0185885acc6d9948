"""Plan a run: check everything that can be checked without training, and estimate its memory, disk space and time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DoesNotFit, RecipeError
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import PREPARE, PROMOTE
from tunesmith.data.dataset import PreparedRows, UsedRows, build_dataset
from tunesmith.data.rehearsal import rehearse
from tunesmith.estimate.disk import DiskEstimate, checkpoints_gib, export_gib, free_gib
from tunesmith.estimate.hardware import detect_hardware
from tunesmith.estimate.throughput import load_speed, speed_key
from tunesmith.evaluate.incumbent import IncumbentCheck
from tunesmith.fetch.reference import ModelFolder, hub_cache, resolve_base
from tunesmith.pipeline.checks import (
    check_base,
    check_prompts,
    check_rows,
    check_version_to_replace,
    count_new_tokens,
    recipe_warnings,
    require_machine,
    unseen_token_warnings,
)
from tunesmith.pipeline.runner import check_prerequisites
from tunesmith.pipeline.runs import open_run
from tunesmith.pipeline.stage_state import stage_states, wanted_stages
from tunesmith.plan import text
from tunesmith.plan.advice import advice
from tunesmith.plan.evidence import Evidence, estimate_evidence, evidence_text, evidence_warnings
from tunesmith.plan.further_sets import SetPlan, SetPlans, plan_sets
from tunesmith.plan.row_counts import RowCounts
from tunesmith.plan.scaling import ClusterEstimate, EstimateInputs, estimate_cluster, estimate_scaling
from tunesmith.plan.workload import Workload, estimate_workload
from tunesmith.recipe.launch import SlurmLaunch, world_size_of
from tunesmith.recipe.schedule import StepPlan, plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.slurm.jobs import script_path
from tunesmith.tasks import task_for
from tunesmith.tasks.model_tokenizer import load_tokenizer

_GIB = 2**30
# The time for which `plan` rehearses each metric; `prepare` rehearses it on the other references.
_REHEARSAL_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The work and the needs of a run.

    Attributes:
        launch: the launcher and the number of processes, as text.
        rows: counts of its rows and tokens.
        steps: its optimizer steps.
        select_best_by: the metric that selects the best checkpoint.
        workload: its validations and its evaluation.
        evidence: the gain that its test rows can detect.
        also: its further held-out sets.
        incumbent: the version that its promotion would replace; None if there is none, or if it is promoted already.
        exports: {its exports: the disk space of each in GiB}.
        lm_eval: its tasks of lm-evaluation-harness, in words.
        cluster: the memory and the throughput of its processes.
        scaling: summaries of estimates for other numbers of nodes or processes; empty if no speed is known.
        disk: the disk space that it needs.
        is_described: whether the saved activations of this architecture are known; otherwise the memory is a guess.
        new_tokens: {token that the recipe adds: how often it occurs in the training rows}.
        stages: the state of each stage.
        scripts: the batch script of each stage; empty if it does not run on Slurm.
        slurm: when Slurm would start the first job; None if Slurm is not installed here.
    """

    name: str
    run: str
    base: str
    method: str
    launch: str
    rows: RowCounts
    steps: StepPlan
    select_best_by: str
    workload: Workload
    evidence: Evidence
    also: list[SetPlan]
    incumbent: IncumbentCheck | None
    exports: dict[str, float]
    lm_eval: list[str]
    cluster: ClusterEstimate
    scaling: list[dict[str, Any]]
    disk: DiskEstimate
    is_described: bool
    new_tokens: dict[str, int]
    stages: dict[str, str]
    warnings: tuple[str, ...]
    scripts: dict[str, str]
    slurm: str | None

    @property
    def training_tokens(self) -> int:
        """The number of tokens that training reads, for all seeds."""
        return self.workload.seeds * round(self.rows.tokens["train"] * self.steps.epochs)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """The time of training, at best and at worst; None if no speed is known.

        The two are equal if nothing is sent between processes, or if the bandwidths are not stated.
        """
        if self.cluster.total_tokens_per_second is None:
            return None
        low, high = self.cluster.total_tokens_per_second
        return self.training_tokens / high, self.training_tokens / low

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON, with the counts of rows and the estimates of the cluster at the top level."""
        low, high = self.seconds or (None, None)
        plan, disk = asdict(self), self.disk
        return {
            **{key: value for key, value in plan.items() if key not in ("rows", "cluster", "disk")},
            **plan["rows"],
            **self.cluster.to_json(),
            "disk": disk.needed, "disk_free": disk.free, "to_fetch": disk.to_fetch, "fetch_free": disk.fetch_free,
            "memory_total": self.cluster.memory.total, "seconds": low, "seconds_at_worst": high,
        }  # fmt: skip

    def require_fit(self) -> None:
        """Raise DoesNotFit if there is too little memory or disk space."""
        disk, cluster, memory = self.disk, self.cluster, self.cluster.memory
        needs = (
            (f"the checkpoints{' and exports' if self.exports else ''} need", disk.needed, disk.free, self.run,
             "free disk space, or lower train.keep_checkpoints", "not-enough-disk"),
            ("the weights need", disk.to_fetch, disk.fetch_free, str(hub_cache()),
             "free disk space, or set HF_HUB_CACHE to a folder on another disk", "not-enough-disk"),
            ("training needs", memory.total, cluster.memory_available, None,
             "leave train.micro_batch at auto, set train.activation_checkpointing, lower data.max_tokens_per_example, "
             "use `method: lora` or `qlora`, or take a smaller model", "not-enough-memory"),
            ("in CPU memory, the shard of each process needs", memory.offloaded, cluster.offloaded_available, None,
             "use more nodes, or remove launch.offload", "not-enough-memory"),
        )  # fmt: skip
        for what, needed, available, where, hint, code in needs:
            if available is not None and needed > available:
                message = f"{what} about {needed:.1f} GiB, and {available:.1f} are available"
                raise DoesNotFit(message, where=where, hint=hint, code=code)

    def __str__(self) -> str:
        lines = [
            f"run      {self.run}",
            f"model    {text.model_text(self.base, self.method, self.launch, self.cluster)}",
            f"rows     {text.rows_text(self.rows)}",
            *(f"source   {source}" for source in text.source_texts(self.rows)),
            *(f"also     {text.set_text(entry)}" for entry in self.also),
            *(f"also     {task}" for task in self.lm_eval),
            f"lengths  {text.lengths_text(self.rows)}",
            f"copies   {text.copies_text(self.rows)}",
            *([f"added    {text.new_tokens_text(self.new_tokens)}"] if self.new_tokens else []),
            f"verdict  {evidence_text(self.evidence)}",
            *([f"promote  {text.promotion_text(self.incumbent)}"] if self.incumbent else []),
            *([f"export   {text.exports_text(self.exports)}"] if self.exports else []),
            f"steps    {text.steps_text(self.steps, self.workload, self.select_best_by)}",
            f"tokens   {text.tokens_text(self.training_tokens, self.workload)}",
            f"time     {text.time_text(self.seconds, self.cluster, self.workload)}",
            *([f"scaling  {text.scaling_text(self.scaling)}"] if len(self.scaling) > 1 else []),
            f"batches  {self.cluster.micro_batches}",
            f"memory   {text.memory_text(self.cluster, is_described=self.is_described)}",
            f"disk     {text.disk_text(self.disk)}",
            f"stages   {', '.join(f'{stage} {state}' for stage, state in self.stages.items())}",
            *(f"warning  {warning}" for warning in self.warnings),
            *(f"\n--- {script_path(RunDir(self.run), stage)}\n{script}" for stage, script in self.scripts.items()),
        ]
        return "\n".join([*lines, *([f"Slurm, first job: {self.slurm}"] if self.slurm else [])])


def plan_run(recipe: Path | str, overrides: Sequence[str] = (), *, out: Path | str | None = None) -> RunPlan:
    """Check a recipe, its data and its model; return the plan of the run.

    If `prepare` has finished, its rows are read instead of the sources, as in the later stages. A plan that does not
    fit in memory or on disk is returned as well; `require_fit` refuses it.

    Raises:
        RecipeError: the recipe is wrong, or its base cannot be found or cannot read the rows.
        DataError: the data cannot be read or used.
    """
    opened = open_run(Path(recipe), overrides, out)
    loaded, run = opened.recipe, opened.run
    check_prerequisites(loaded, run)
    base = resolve_base(run, loaded.model.base, weights=False)
    shapes = check_base(loaded, base)
    require_machine(loaded, base)
    tokenizer = load_tokenizer(base, loaded.model)
    task = task_for(loaded.data, tokenizer)
    stages = stage_states(loaded, run)
    is_prepared = stages[PREPARE.name] == "done"
    rows = _prepared_rows(run) if is_prepared else build_dataset(loaded, task, folder=run.recipe_folder, model=base)
    train_rows = check_rows(loaded, base, shapes, tokenizer, rows)
    speed = load_speed(speed_key(base.digest(), loaded))
    inputs = EstimateInputs(shapes, train_rows, detect_hardware(), speed, len(tokenizer.new_ids))
    notes = rehearse(loaded, task, rows, run, is_prepared=is_prepared, seconds=_REHEARSAL_SECONDS)
    later = "evaluation reads the others" if is_prepared else "`prepare` reads all of them before training"
    sets = plan_sets(loaded, run, base, shapes.positions, tokenizer, rows, seconds=_REHEARSAL_SECONDS)
    incumbent = None
    if stages.get(PROMOTE.name, "done") != "done":
        incumbent = check_version_to_replace(loaded, base, rows, run.recipe_folder)
    new_tokens = count_new_tokens(tokenizer, train_rows)
    warnings = (
        *unseen_token_warnings(new_tokens),
        *recipe_warnings(loaded, base, shapes, tokenizer),
        *check_prompts(loaded, shapes.positions, tokenizer, rows),
        *(f"{note}; {later}" for note in notes),
        *sets.warnings,
        *([incumbent.warning] if incumbent is not None and incumbent.warning else []),
    )
    return _estimate(loaded, run, base, rows, sets, incumbent, inputs, new_tokens, stages, warnings)


def _prepared_rows(run: RunDir) -> PreparedRows:
    """Return the rows that `prepare` wrote, and log its remarks about them again."""
    rows = PreparedRows(run)
    for remark in rows.facts().get("remarks", ()):  # older runs have none
        log(remark)
    return rows


def _estimate(
    recipe: Recipe,
    run: RunDir,
    base: ModelFolder,
    rows: UsedRows,
    sets: SetPlans,
    incumbent: IncumbentCheck | None,
    inputs: EstimateInputs,
    new_tokens: dict[str, int],
    stages: dict[str, str],
    warnings: tuple[str, ...],
) -> RunPlan:
    counts = RowCounts.from_facts(rows.facts())
    steps = plan_steps(recipe, counts.counts["train"])
    shapes, speed = inputs.shapes, inputs.speed
    cluster = estimate_cluster(recipe, inputs)
    has_speed = cluster.total_tokens_per_second is not None
    single = cluster.step_tokens / speed.step_seconds(cluster.step_tokens) if speed and has_speed else None
    _require_time_for_checkpoint(recipe, single, cluster.step_tokens * steps.save_every_steps)
    trainable = cluster.memory.trainable_parameters
    exports = {entry.folder_name: export_gib(entry, shapes, trainable) for entry in recipe.export or ()}
    disk = DiskEstimate(
        needed=checkpoints_gib(recipe, shapes, trainable, steps.total_steps) + sum(exports.values()),
        free=free_gib(run.path),
        to_fetch=shapes.parameters * shapes.stored_bytes / _GIB if base.root.to_fetch else 0.0,
        fetch_free=free_gib(hub_cache()),
    )
    scripts, slurm = _batch_scripts(recipe, run)
    evidence = estimate_evidence(recipe, rows)
    return RunPlan(
        name=recipe.name, run=str(run), base=recipe.model.base, method=recipe.tuning.method,
        launch=text.launch_text(recipe.launch), rows=counts, steps=steps, select_best_by=recipe.train.select_best_by,
        workload=estimate_workload(recipe, rows, sets.rows, incumbent, steps, cluster, speed), evidence=evidence,
        also=sets.plans, incumbent=incumbent, exports=exports, cluster=cluster,
        lm_eval=list(map(text.task_text, recipe.evaluate.lm_eval)),
        scaling=[size.summary() for size in estimate_scaling(recipe, inputs)] if has_speed else [],
        disk=disk, is_described=shapes.known, new_tokens=new_tokens, stages=stages, scripts=scripts, slurm=slurm,
        warnings=(
            *warnings, *advice(recipe, steps, counts.counts, shapes.parameters),
            *evidence_warnings(recipe, evidence, sets.plans),
        ),
    )  # fmt: skip


def _require_time_for_checkpoint(recipe: Recipe, speed: float | None, interval: float) -> None:
    """Raise RecipeError if a Slurm job would end before its first checkpoint.

    The estimate is optimistic: every process has the measured speed of one, and communication takes no time.

    Args:
        speed: tokens per second of one process; None if unknown.
        interval: tokens between two checkpoints.
    """
    launch = recipe.launch
    if not isinstance(launch, SlurmLaunch) or launch.time_limit_minutes is None or speed is None:
        return
    needed = interval / (speed * world_size_of(launch)) / 60
    available = launch.time_limit_minutes - launch.grace_minutes
    if needed > available:
        problem = f"a job trains for {available} minutes, and needs {needed:.0f} for a checkpoint at the measured speed"
        hint = "raise it, or lower train.save_every_steps"
        raise RecipeError(problem, where="launch.time_limit_minutes", hint=hint, code="time-limit-too-short")


def _batch_scripts(recipe: Recipe, run: RunDir) -> tuple[dict[str, str], str | None]:
    """Return the batch script of each stage, and when Slurm would start the first one, if Slurm is installed here.

    Raises:
        RecipeError: Slurm refuses one of the scripts.
    """
    if recipe.launch.on != "slurm":
        return {}, None
    from tunesmith.pipeline.submit import batch_scripts
    from tunesmith.slurm.client import estimate_start, is_available

    scripts = {job.stage: script for job, script in batch_scripts(recipe, run, wanted_stages(recipe))}
    starts = [estimate_start(script) for script in scripts.values()] if is_available() else [None]
    return scripts, starts[0]
