"""The lines of `tunesmith plan`, each from one part of the plan."""

from typing import Any

from tunesmith.core.progress import format_duration
from tunesmith.core.rundir import SPLITS
from tunesmith.estimate.disk import DiskEstimate
from tunesmith.evaluate.incumbent import IncumbentCheck
from tunesmith.plan.further_sets import SetPlan
from tunesmith.plan.row_counts import RowCounts
from tunesmith.plan.scaling import ClusterEstimate
from tunesmith.plan.workload import Workload
from tunesmith.recipe.guards import HarnessTask
from tunesmith.recipe.launch import Launch, SlurmLaunch, local_world_size_of
from tunesmith.recipe.schedule import StepPlan
from tunesmith.scoring.metrics import is_lower_better

_SHARDING = {"full": ", layers sharded over all processes", "node": ", layers sharded over the processes of each node"}
_COPIES = {
    "duplicates": "within train", "valid": "valid rows in train", "test": "test rows in train",
    "left_out": "left out of train",
}  # fmt: skip
_BARS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def launch_text(launch: Launch) -> str:
    """Return the launcher and the number of processes, such as `slurm, 4 processes on each of 2 nodes`."""
    if launch.on == "local":
        return launch.on
    nodes = f" on each of {launch.nodes} nodes" if isinstance(launch, SlurmLaunch) and launch.nodes > 1 else ""
    processes = local_world_size_of(launch)
    return f"{launch.on}, {processes} process{'es' * (processes > 1)}{nodes}"


def model_text(base: str, method: str, launch: str, cluster: ClusterEstimate) -> str:
    """Return the base, the tuning method, the trained parameters, and the processes that train them."""
    trained = f"{cluster.memory.trainable_parameters:,} trained parameters"
    return f"{base}, {method}, {trained}, on {launch}{_SHARDING.get(cluster.sharding, '')}"


def rows_text(rows: RowCounts) -> str:
    """Return the rows of each split, and the rows that are not used with the reasons."""
    blocks = "; {documents:,} documents in {blocks:,} blocks".format(**rows.blocks) if rows.blocks["blocks"] else ""
    not_used = {"dropped": rows.dropped, "filtered": rows.filtered, "cut": rows.cut, "unused": rows.unused}
    reasons = "".join(f"; {kind} {n} x {reason}" for kind, counts in not_used.items() for reason, n in counts.items())
    return f"{_split_counts(rows.counts)}{blocks}{reasons}"


def source_texts(rows: RowCounts) -> list[str]:
    """Return the rows of each source, if there are several sources."""
    if len(rows.sources) < 2:
        return []
    return [f"{name}: {_split_counts(counts)}" for name, counts in rows.sources.items()]


def set_text(entry: SetPlan) -> str:
    """Return the rows of a further held-out set, and the change for the worse that is allowed on it."""
    rows = f"{entry.rows:,} of {entry.all_rows:,} rows" if entry.rows < entry.all_rows else f"{entry.rows:,} rows"
    worse = "rise" if is_lower_better(entry.metric) else "drop"
    change = f"{entry.metric} may {worse} by less than {entry.max_drop:g}"
    return f"{entry.name}: {rows} of up to {entry.longest:,} tokens, {entry.tokens:,} for each model; {change}"


def promotion_text(incumbent: IncumbentCheck) -> str:
    """Return the version that the promotion would replace, and how it is compared with the tuned model."""
    replaced = f"{incumbent.alias} is {incumbent.version}"
    if incumbent.problem:
        return f"{replaced}, which cannot be compared"
    answers = "answers the test rows, too" if incumbent.is_asked else "is the base"
    return f"{replaced}, which {answers}; the tuned model replaces it only if it is better"


def exports_text(exports: dict[str, float]) -> str:
    """Return the formats of the exports, with their disk space, and how they are proved."""
    sizes = ", ".join(f"{name} (about {size:.2f} GiB)" for name, size in exports.items())
    return f"{sizes}; each answers up to 100 test rows, to prove that it is still the tuned model"


def task_text(entry: HarnessTask) -> str:
    """Return a task of lm-evaluation-harness, and the drop that is allowed on it."""
    change = f"{entry.metric or 'its first metric'} may drop by less than {entry.max_drop:g}"
    return f"{entry.set_name}: task `{entry.task}` of lm-evaluation-harness, at most {entry.rows:,} rows; {change}"


def lengths_text(rows: RowCounts) -> str:
    """Return a bar histogram of the training rows' lengths in tokens, with the median and the 95th percentile."""
    lengths = rows.lengths["train"]
    counts = [count for _, _, count in lengths["histogram"]]
    bars = "".join(_BARS[-(-8 * count // max(counts))] for count in counts)
    return (
        f"|{bars}| training rows from 0 to {lengths['max']} tokens, median {lengths['median']}, "
        f"95th percentile {lengths['p95']}; longest row of all splits {rows.longest}"
    )


def copies_text(rows: RowCounts) -> str:
    """Return the numbers of exact duplicates and near-duplicates."""
    found = ((text, rows.copies[key]) for key, text in _COPIES.items() if key in rows.copies)
    return ", ".join(f"{text} {pairs['exact']} exact + {pairs['near']} near" for text, pairs in found)


def new_tokens_text(counts: dict[str, int]) -> str:
    """Return how often each token that the recipe adds occurs in the training rows, for the first tokens."""
    shown = ", ".join(f"{token} {count:,} times" for token, count in list(counts.items())[:8])
    others = f", and {len(counts) - 8:,} others" if len(counts) > 8 else ""
    return f"{len(counts):,} tokens, which occur in training rows: {shown}{others}"


def steps_text(steps: StepPlan, workload: Workload, select_best_by: str) -> str:
    """Return the number of steps, when the run validates and saves, and which checkpoint becomes its result."""
    decay = f", decay {steps.decay_steps}" if steps.decay_steps else ""
    at_most = "at most " if steps.can_stop_early else ""
    seeds = f" for each of {workload.seeds} seeds" if workload.seeds > 1 else ""
    text = f"{at_most}{steps.total_steps}{seeds} ({steps.epochs:.2f} epochs), warmup {steps.warmup_steps}{decay}"
    saving = f"checkpoint every {steps.save_every_steps}"
    if not workload.all_valid_rows:
        return f"{text}, {saving}; keeps the last one, as there are no valid rows to select it by"
    answering = f", answering {workload.answered_valid_rows} rows" if workload.answered_valid_rows else ""
    text += f", validation every {steps.valid_every_steps}{answering}"
    text += f", {saving}; keeps the best by {select_best_by}"
    if steps.can_stop_early:
        text += f"; stops early after {steps.stop_after} validations without improvement (times are for all steps)"
    return text


def tokens_text(training_tokens: int, workload: Workload) -> str:
    """Return the tokens of training, validation and evaluation."""
    text = f"{training_tokens:,} for training"
    if workload.valid_rows:
        text += f", {workload.all_valid_tokens:,} for validation ({workload.validations} x {workload.valid_tokens:,})"
    if workload.valid_rows < workload.all_valid_rows:
        text += f" on {workload.valid_rows:,} of {workload.all_valid_rows:,} valid rows, see train.valid_loss_rows"
    models = ["base", "tuned" if workload.seeds == 1 else f"{workload.seeds} tuned models"]
    models += [workload.incumbent] if workload.incumbent else []
    rows = f"{workload.test_rows:,} test rows by {', '.join(models[:-1])} and {models[-1]}"
    if workload.answered_valid_rows:
        rows += f", {workload.answered_valid_rows:,} valid rows {workload.validations} times"
    return f"{text}; at most {workload.generated_tokens[1]:,} generated ({rows})"


def time_text(seconds: tuple[float, float] | None, cluster: ClusterEstimate, workload: Workload) -> str:
    """Return the time of training, validation and generation.

    Args:
        seconds: the shortest and the longest estimated time of training; None if unknown.
    """
    text = f"training {_training_time(seconds, cluster)}"
    if workload.validation_seconds is not None and workload.valid_rows:
        bound = "about" if workload.is_measured else "at most about"
        text += f"; validation {bound} {format_duration(workload.validation_seconds)}"
    elif workload.valid_rows:
        text += "; validation unknown"
    if workload.generation_seconds is None:
        return f"{text}; generation unknown (this model has not generated on this machine)"
    return f"{text}; generation {_duration_range(workload.generation_seconds)}"


def _training_time(seconds: tuple[float, float] | None, cluster: ClusterEstimate) -> str:
    if seconds is None or cluster.total_tokens_per_second is None:
        return "unknown (no measured speed for this model on this hardware)"
    low, high = seconds
    measured = f"at {cluster.tokens_per_second:.0f} tokens/s, measured in an earlier run on this machine"
    if cluster.processes == 1:
        return f"about {format_duration(low)} {measured}"
    processes = f"with {cluster.processes} processes"
    if cluster.communication is None:
        return f"about {format_duration(low)} at best, {processes}, each {measured}"
    speed = f"{_number_range(cluster.total_tokens_per_second)} tokens/s"
    process_hours = f"up to {high * cluster.processes / 3600:.1f} process-hours"
    return f"about {_duration_range(seconds)} {processes}, {speed}, {process_hours}; each {measured}"


def scaling_text(sizes: list[dict[str, Any]]) -> str:
    """Return the tokens per second by the number of nodes, or of processes on one node."""
    at_best = ", at best" if sizes[-1]["at_best"] else ""
    unit = "nodes" if sizes[-1]["nodes"] > 1 else "processes"
    speeds = (_number_range(size["tokens_per_second"]) if size["fits"] else "does not fit" for size in sizes)
    texts = (f"{size[unit]}: {speed}" for size, speed in zip(sizes, speeds, strict=True))
    return f"tokens/s by {unit}{at_best}: {'; '.join(texts)}"


def memory_text(cluster: ClusterEstimate, *, is_described: bool) -> str:
    """Return the memory of each process by purpose, and the memory that is available.

    Args:
        is_described: whether the architecture is one whose activations are known.
    """
    memory = cluster.memory
    text = f"about {memory.total:.1f} GiB{_of_available(cluster.memory_available)}"
    if cluster.processes > 1:
        text += " for each process"
    if not is_described:
        text += "; a guess, because this architecture is not described"
    purposes = ("weights", "gradients", "optimizer", "activations", "logits", "fragmentation", "libraries")
    text += f" ({', '.join(f'{purpose} {getattr(memory, purpose):.2f}' for purpose in purposes)})"
    if memory.offloaded:
        text += f"; offloaded to CPU memory {memory.offloaded:.1f} GiB{_of_available(cluster.offloaded_available)}"
    return text


def disk_text(disk: DiskEstimate) -> str:
    """Return the disk space of the run, and of the weights that it downloads."""
    text = f"about {disk.needed:.1f} GiB of {disk.free:.1f} free"
    if disk.to_fetch:
        text += f"; weights to download {disk.to_fetch:.1f} of {disk.fetch_free:.1f} free"
    return text


def _split_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)


def _of_available(available: float | None) -> str:
    return "" if available is None else f" of {available:.1f} available"


def _number_range(bounds: tuple[float, float]) -> str:
    return " to ".join(dict.fromkeys(f"{bound:,.0f}" for bound in bounds))


def _duration_range(bounds: tuple[float, float]) -> str:
    return " to ".join(dict.fromkeys(map(format_duration, bounds)))
