"""Checks between keys of a recipe: a combination in which a setting would have no effect is an error."""

from collections.abc import Iterator
from typing import NamedTuple

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.base import code_and_message
from tunesmith.recipe.launch import world_size_of
from tunesmith.recipe.schema import Recipe, Train
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
    return [
        *_metric_contradictions(recipe),
        *_threshold_contradictions(recipe),
        *_validation_contradictions(recipe),
        *_split_contradictions(recipe),
        *_launch_contradictions(recipe),
        *_other_contradictions(recipe),
    ]


def _metric_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    evaluate = recipe.evaluate
    try:
        generated = expand_metrics([name for name in evaluate.metrics if name not in LIKELIHOOD_METRICS])
    except RecipeError as error:
        yield _from_error(("evaluate", "metrics"), error)
        return
    metrics = (*generated, *(name for name in evaluate.metrics if name in LIKELIHOOD_METRICS))
    uses = [(("evaluate", "primary"), evaluate.primary)]
    uses += [(("evaluate", "guards"), guard.metric) for guard in evaluate.guards]
    for path, metric in uses:
        if metric not in metrics:
            yield Mistake(path, f"`{metric}` is not in evaluate.metrics ({', '.join(metrics)})", "not-measured")
    if "execution" in metrics and evaluate.database is None:
        yield Mistake(("evaluate", "metrics"), "`execution` needs evaluate.database", "missing-key")
    if "execution" not in (*metrics, *recipe.train.valid_metrics) and evaluate.database is not None:
        yield Mistake(("evaluate", "database"), "has no effect without the metric `execution`")


def _threshold_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    """Yield thresholds that no change of a metric can exceed: a share changes by at most 1."""
    evaluate, promote = recipe.evaluate, recipe.promote
    if promote is not None and is_share(evaluate.primary) and promote.min_gain >= 1:
        message = f"no gain can exceed it: {share_hint(evaluate.primary, promote.min_gain)}"
        yield Mistake(("promote", "min_gain"), message, "unreachable-threshold")
    for guard in evaluate.guards:
        if is_share(guard.metric) and guard.max_drop >= 1:
            message = f"no drop can exceed max_drop: {share_hint(guard.metric, guard.max_drop)}"
            yield Mistake(("evaluate", "guards"), message, "unreachable-threshold")


def find_remarks(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (path of the key, warning) for settings that are allowed but probably a mistake."""
    promote = recipe.promote
    if promote is not None and is_share(recipe.evaluate.primary) and promote.min_gain <= -1:
        yield ("promote", "min_gain"), "every model will be promoted, because no share can fall by more than 1"


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
        yield _from_error(path, error)
        return
    if "execution" in generated and recipe.evaluate.database is None:
        yield Mistake(path, "`execution` needs evaluate.database", "missing-key")
    if not train.valid_metrics and train.valid_rows != Train.model_fields["valid_rows"].default:
        yield Mistake(("train", "valid_rows"), "has no effect without train.valid_metrics")
    candidates = (*_ALWAYS_MEASURED, *generated)
    if train.select_best_by not in candidates:
        message = f"`{train.select_best_by}` is not measured ({', '.join(candidates)} are); add it to valid_metrics"
        yield Mistake(("train", "select_best_by"), message, "not-measured")


def _split_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    split, train = recipe.data.split, recipe.train
    if split.column is not None:
        return
    if split.test == 0:
        message = "must be above 0, because the verdict needs rows that training never used"
        yield Mistake(("data", "split", "test"), message, "contradiction")
    if split.valid == 0:
        is_set = {
            "valid_every_steps": train.valid_every_steps is not None,
            "valid_loss_rows": train.valid_loss_rows != Train.model_fields["valid_loss_rows"].default,
            "valid_metrics": bool(train.valid_metrics),
            "select_best_by": train.select_best_by != Train.model_fields["select_best_by"].default,
        }
        for key in (key for key, value in is_set.items() if value):
            yield Mistake(("train", key), "has no effect if data.split.valid is 0")


def _launch_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    launch = recipe.launch
    if launch.sharding not in ("full", "node"):
        if launch.offload:
            yield Mistake(("launch", "offload"), "has no effect unless `launch.sharding` is `full` or `node`")
        return
    path = ("launch", "sharding")
    if reason := sharding_unsupported_reason(recipe):
        yield Mistake(path, f"`{launch.sharding}` is not supported for this recipe: {reason}", "sharding-unsupported")
    elif launch.on != "local" and world_size_of(launch) == 1:
        yield Mistake(path, f"`{launch.sharding}` has no effect with one process")


def sharding_unsupported_reason(recipe: Recipe) -> str | None:
    """Return why the model cannot be sharded, so that each rank holds all of it; None if it can."""
    if isinstance(recipe.tuning, Quantization) and recipe.tuning.bits == 8:
        return "8-bit weights cannot be sharded; 4-bit weights can"
    if isinstance(recipe.tuning, FullTuning) and recipe.train.optimizer in ("adafactor", "adamw_8bit"):
        return f"the state of `{recipe.train.optimizer}` for a shard of a matrix differs from that for the whole matrix"
    return None


def _other_contradictions(recipe: Recipe) -> Iterator[Mistake]:
    data, train, source = recipe.data, recipe.train, recipe.data.source
    only = source[0] if isinstance(source, tuple) and len(source) == 1 else source
    if not isinstance(only, tuple) and only.weight != 1:
        message = "`weight` has no effect on a single source; use data.train_rows or train.epochs"
        yield Mistake(("data", "source"), message)
    if data.too_long == "split" and data.task != "text":
        message = "`split` needs `task: text`: with a prompt and an answer, later blocks would lack the prompt"
        yield Mistake(("data", "too_long"), message, "contradiction")
    uses_markup = data.task == "chat" or (data.task == "text" and data.control_tokens)
    if recipe.model.chat_markup is not None and not uses_markup:
        message = "has no effect without `task: chat` or `control_tokens: true`"
        yield Mistake(("model", "chat_markup"), message)
    if isinstance(train.micro_batch, int) and train.micro_batch > train.examples_per_step:
        message = "is more than train.examples_per_step, so the excess would have no effect"
        yield Mistake(("train", "micro_batch"), message)
    if train.optimizer in ("adafactor", "sgd"):
        for beta in ("beta1", "beta2"):
            if getattr(train, beta) != Train.model_fields[beta].default:
                yield Mistake(("train", beta), f"has no effect on `{train.optimizer}`; only AdamW uses it")
    if train.micro_batch != "auto" and train.micro_batch_tokens is not None:
        yield Mistake(("train", "micro_batch_tokens"), "has no effect if train.micro_batch is set")


def _from_error(path: tuple[str, ...], error: RecipeError) -> Mistake:
    code, message = code_and_message(error)
    return Mistake(path, message, code)
