"""Checks between keys of a recipe: a combination in which a setting would have no effect is an error."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.also import guarded_metric
from tunesmith.recipe.base import message_and_code
from tunesmith.recipe.export import AdapterExport, GgufExport, Reader
from tunesmith.recipe.held_out import fraction, has_rows, own_source
from tunesmith.recipe.launch import world_size_of
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning, Quantization
from tunesmith.recipe.yaml import KeyPath
from tunesmith.scoring.metrics import LIKELIHOOD_METRICS, answer_metrics, expand_metrics, is_share, share_hint


class Mistake(NamedTuple):
    """A mistake in a recipe: the key's path, what is wrong, and its error code."""

    path: KeyPath
    message: str
    code: str = "no-effect"


# Measured at every validation, without answers.
_ALWAYS_MEASURED = ("loss", "token_accuracy")


def find_contradictions(recipe: Recipe) -> list[Mistake]:
    """Return all contradictions between keys that are valid separately."""
    checks = (
        _metric_contradictions, _decoding_contradictions, _threshold_contradictions, _validation_contradictions,
        _split_contradictions, _launch_contradictions, _export_contradictions, _other_contradictions,
    )  # fmt: skip
    return [mistake for check in checks for mistake in check(recipe)]


def _metric_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    evaluate = recipe.evaluate
    uses = [("primary", evaluate.primary), *(("guards", guard.metric) for guard in evaluate.guards)]
    yield from _measured_contradictions(recipe, ("evaluate",), evaluate.metrics, uses)
    for index, entry in enumerate(evaluate.also):
        path = ("evaluate", "also", index)
        yield from _measured_contradictions(recipe, path, entry.metrics, [("primary", guarded_metric(entry))])
        if entry.changed("max_new_tokens") and set(entry.metrics) <= set(LIKELIHOOD_METRICS):
            yield Mistake((*path, "max_new_tokens"), "has no effect, because no metric of the set needs answers")
    if "execution" not in (*evaluate.all_metrics, *recipe.train.valid_metrics) and evaluate.database is not None:
        yield Mistake(("evaluate", "database"), "has no effect without the metric `execution`")


def _decoding_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    evaluate = recipe.evaluate
    for key in evaluate.changed("sampling", "stop") if evaluate.beams > 1 else ():
        yield Mistake(("evaluate", key), "cannot be combined with beam search; remove `beams`", "contradiction")
    if evaluate.samples > 1:
        path = ("evaluate", "samples")
        if not evaluate.sampling.temperature:
            yield Mistake(path, "has no effect without evaluate.sampling.temperature: greedy answers are all equal")
        if not set(evaluate.metrics).difference(LIKELIHOOD_METRICS):
            yield Mistake(path, "has no effect without a metric of answers in evaluate.metrics")
    if "" in evaluate.stop:
        yield Mistake(("evaluate", "stop"), "an empty text would end every answer at once", "wrong-value")


def _measured_contradictions(
    recipe: Recipe, path: KeyPath, metrics: Sequence[str], uses: Iterable[tuple[str, str]]
) -> Iterator[Mistake]:
    """Yield unknown metrics, and keys that use a metric that is not measured.

    Args:
        path: the key of the section with the metrics.
        uses: pairs of the key in the section and the metric that it uses.
    """
    try:
        generated = expand_metrics([name for name in metrics if name not in LIKELIHOOD_METRICS])
    except RecipeError as error:
        yield Mistake((*path, "metrics"), *message_and_code(error))
        return
    measured = (*generated, *(name for name in metrics if name in LIKELIHOOD_METRICS))
    section = ".".join(str(part) for part in path if isinstance(part, str))
    for key, metric in uses:
        if metric not in measured:
            message = f"`{metric}` is not in {section}.metrics ({', '.join(measured)})"
            yield Mistake((*path, key), message, "not-measured")
    if "execution" in measured and recipe.evaluate.database is None:
        yield Mistake((*path, "metrics"), "`execution` needs evaluate.database", "missing-key")


def _threshold_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    """Yield thresholds that no change of a metric can exceed: a share changes by at most 1."""
    evaluate, promote = recipe.evaluate, recipe.promote
    limits: list[tuple[KeyPath, str, str, float]] = [
        (("evaluate", "guards"), "max_drop", guard.metric, guard.max_drop) for guard in evaluate.guards
    ]
    for index, entry in enumerate(evaluate.also):
        limits.append((("evaluate", "also", index, "max_drop"), "max_drop", guarded_metric(entry), entry.max_drop))
    if promote is not None:
        limits.append((("promote", "min_gain"), "min_gain", evaluate.primary, promote.min_gain))
    for path, name, metric, limit in limits:
        if is_share(metric) and limit >= 1:
            yield Mistake(path, f"no change can exceed {name}: {share_hint(metric, limit)}", "unreachable-threshold")


def find_remarks(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (path of the key, warning) for settings that are allowed but probably a mistake."""
    promote = recipe.promote
    if promote is not None and is_share(recipe.evaluate.primary) and promote.min_gain <= -1:
        yield ("promote", "min_gain"), "every model will be promoted, because no share can fall by more than 1"
    if not recipe.data.train_on_end:
        stop = " or at one of evaluate.stop" if recipe.evaluate.stop else ""
        yield (
            ("data", "train_on_end"),
            f"the model does not learn to stop: unless the base already does, answers end at evaluate.max_new_tokens "
            f"({recipe.evaluate.max_new_tokens}){stop}, `generate` and `chat` at --max-new-tokens or --stop",
        )


def _validation_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    train, path = recipe.train, ("train", "valid_metrics")
    for name in train.valid_metrics:
        if name in _ALWAYS_MEASURED:
            yield Mistake(path, f"`{name}` is measured at every validation anyway; remove it")
        elif name in LIKELIHOOD_METRICS:
            yield Mistake(path, f"`{name}` needs no answers; `loss` and `token_accuracy` are measured instead")
    try:
        generated = answer_metrics(train.valid_metrics)
    except RecipeError as error:
        yield Mistake(path, *message_and_code(error))
        return
    if "execution" in generated and recipe.evaluate.database is None:
        yield Mistake(path, "`execution` needs evaluate.database", "missing-key")
    if not train.valid_metrics and train.changed("valid_rows"):
        yield Mistake(("train", "valid_rows"), "has no effect without train.valid_metrics")
    candidates = (*_ALWAYS_MEASURED, *generated)
    if train.select_best_by not in candidates:
        message = f"`{train.select_best_by}` is not measured ({', '.join(candidates)} are); add it to valid_metrics"
        yield Mistake(("train", "select_best_by"), message, "not-measured")


def _split_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    data, train = recipe.data, recipe.train
    for name in ("valid", "test"):
        own = own_source(data, name)
        for source in (own if isinstance(own, tuple) else (own,)) if own is not None else ():
            for key in source.changed("weight", "loss_weight"):
                yield Mistake(("data", name), f"`{key}` has no effect on {name} rows, which are not trained on")
    if data.split.column is not None:
        return
    if not has_rows(data, "test"):
        message = "must be above 0, because the verdict needs rows that training never used"
        path = ("data", "split", "test") if data.test is None else ("data", "test")
        yield Mistake(path, message, "contradiction")
    elif fraction(data, "valid") + fraction(data, "test") >= 1:
        yield Mistake(("data",), "`valid` and `test` leave no rows to train on", "contradiction")
    if not has_rows(data, "valid"):
        keys = ("valid_every_steps", "valid_loss_rows", "valid_metrics", "select_best_by", "stop_early")
        for key in train.changed(*keys):
            yield Mistake(("train", key), "has no effect without validation rows (data.split.valid is 0)")


def _launch_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    launch = recipe.launch
    if launch.sharding not in ("full", "node"):
        if launch.offload:
            yield Mistake(("launch", "offload"), "has no effect unless `launch.sharding` is `full` or `node`")
        return
    path = ("launch", "sharding")
    if reason := sharding_unsupported_reason(recipe):
        yield Mistake(path, f"`{launch.sharding}` is not supported for this recipe: {reason}", "sharding-unsupported")
    elif launch.offload and recipe.train.optimizer == "muon" and isinstance(recipe.tuning, FullTuning):
        message = "is not supported with `muon`, which would orthogonalize every matrix on the CPU in each step"
        yield Mistake(("launch", "offload"), message, "sharding-unsupported")
    elif launch.on != "local" and world_size_of(launch) == 1:
        yield Mistake(path, f"`{launch.sharding}` has no effect with one process")


def sharding_unsupported_reason(recipe: Recipe) -> str | None:
    """Return why the model cannot be sharded, so that each rank holds all of it; None if it can."""
    if isinstance(recipe.tuning, Quantization) and recipe.tuning.bits == 8:
        return "8-bit weights cannot be sharded; 4-bit weights can"
    if isinstance(recipe.tuning, FullTuning) and recipe.tuning.freeze:
        return "with `tuning.freeze`, a layer may hold both trained and frozen weights"
    if isinstance(recipe.tuning, FullTuning) and recipe.train.optimizer in ("adafactor", "adamw_8bit"):
        return f"the state of `{recipe.train.optimizer}` for a shard of a matrix differs from that for the whole matrix"
    return None


def _export_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    folders: set[str] = set()
    repositories: set[str] = set()
    for index, entry in enumerate(recipe.export or ()):
        if entry.repo in repositories:
            message = f"replaces the files of another one in `{entry.repo}`; name another `repo`"
            yield Mistake(("export", index), message, "contradiction")
        repositories |= {entry.repo} if entry.repo else set()
        folder = entry.out or entry.folder_name
        if folder in folders:
            yield Mistake(("export", index), f"is written to `{folder}` like another one; set `out`", "contradiction")
        folders.add(folder)
        path: KeyPath = ("export", index)
        if isinstance(entry, GgufExport) and ("_k" in (entry.type or "")) != bool(entry.quantize_with):
            message = "the types with `k` need `quantize_with`, and the others have no use for it"
            yield Mistake((*path, "type"), message, "contradiction")
        if isinstance(entry, GgufExport) and entry.adapter_only:
            yield from _adapter_contradictions(recipe, ("llama.cpp",), path)
        if isinstance(entry, AdapterExport):
            yield from _adapter_contradictions(recipe, entry.readers, path)


def _adapter_contradictions(recipe: Recipe, readers: Sequence[Reader], path: KeyPath) -> Iterator[Mistake]:
    """Yield why a recipe has no adapter that these programs can read."""
    tuning, others = recipe.tuning, [reader for reader in readers if reader != "peft"]
    if isinstance(tuning, FullTuning):
        yield Mistake(path, "an adapter needs `tuning.method: lora` or `qlora`; use `to: merged`", "contradiction")
    elif tuning.dora and others:
        message = f"{' and '.join(others)} cannot read DoRA; set `readers: [peft]`, or use `merged`"
        yield Mistake(path, message, "contradiction")
    elif recipe.model.add_tokens and others:
        message = f"{' and '.join(others)} cannot read the rows of new tokens; use `merged`"
        yield Mistake(path, message, "contradiction")


def _other_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    data, train, source = recipe.data, recipe.train, recipe.data.source
    only = source[0] if isinstance(source, tuple) and len(source) == 1 else source
    if not isinstance(only, tuple) and only.weight != 1:
        yield Mistake(("data", "source"), "`weight` has no effect on one source; use data.train_rows or train.epochs")
    if not isinstance(only, tuple) and only.loss_weight != 1:
        message = "`loss_weight` has no effect on one source, because the loss is divided by the sum of the weights"
        yield Mistake(("data", "source"), message)
    sets = [(("evaluate", "also", index), entry) for index, entry in enumerate(recipe.evaluate.also)]
    for section, rows in ((("data",), data), *sets):
        if rows.too_long == "split" and rows.task != "text":
            message = "`split` needs `task: text`: with a prompt and an answer, later blocks would lack the prompt"
            yield Mistake((*section, "too_long"), message, "contradiction")
    uses_markup = data.task == "chat" or (data.task == "text" and data.control_tokens)
    if recipe.model.chat_markup is not None and not uses_markup:
        yield Mistake(("model", "chat_markup"), "has no effect without `task: chat` or `control_tokens: true`")
    if isinstance(train.micro_batch, int) and train.micro_batch > train.examples_per_step:
        yield Mistake(("train", "micro_batch"), "has no effect beyond train.examples_per_step, and is more than that")
    if train.optimizer in ("adafactor", "sgd"):
        for beta in train.changed("beta1", "beta2"):
            yield Mistake(("train", beta), f"has no effect on `{train.optimizer}`; only AdamW uses it")
    if train.micro_batch != "auto" and train.micro_batch_tokens is not None:
        yield Mistake(("train", "micro_batch_tokens"), "has no effect if train.micro_batch is set")
