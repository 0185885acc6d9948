"""Settings of a recipe that are fine alone but not together: every one that would have no effect is an error."""

from collections.abc import Iterator

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.launch import world_size_of
from tunesmith.recipe.schema import FullTuning, Quantization, Recipe, Train
from tunesmith.scoring.metrics import LIKELIHOOD_METRICS, answer_metrics, expand_metrics, is_share, share_hint

Problems = Iterator[tuple[tuple[str, ...], str]]
# What validation finds about every valid row, and what else needs no answer.
_MEASURED_ANYWAY = ("loss", "token_accuracy")
_NEEDS_NO_ANSWER = ("loss", *LIKELIHOOD_METRICS)


def find_contradictions(recipe: Recipe) -> list[tuple[tuple[str, ...], str]]:
    """Return (path of the key, problem) for settings that are fine alone but not together."""
    return [
        *_metric_problems(recipe),
        *_threshold_problems(recipe),
        *_valid_problems(recipe),
        *_split_problems(recipe),
        *_launch_problems(recipe),
        *_effectless(recipe),
    ]


def _metric_problems(recipe: Recipe) -> Problems:
    evaluate = recipe.evaluate
    try:
        generated = expand_metrics([name for name in evaluate.metrics if name not in LIKELIHOOD_METRICS])
    except RecipeError as error:
        yield ("evaluate", "metrics"), _told(error)
        return
    metrics = (*generated, *(name for name in evaluate.metrics if name in LIKELIHOOD_METRICS))
    named = [(("evaluate", "primary"), evaluate.primary)]
    named += [(("evaluate", "guards"), guard.metric) for guard in evaluate.guards]
    for path, metric in named:
        if metric not in metrics:
            yield path, f"`{metric}` is not among evaluate.metrics ({', '.join(metrics)})"
    if "execution" in metrics and evaluate.database is None:
        yield ("evaluate", "metrics"), "`execution` needs evaluate.database"
    if "execution" not in (*metrics, *recipe.train.valid_metrics) and evaluate.database is not None:
        yield ("evaluate", "database"), "has no effect without the metric `execution`"


def _threshold_problems(recipe: Recipe) -> Problems:
    """Yield thresholds that no change of a metric can exceed: a share changes by at most 1."""
    evaluate, promote = recipe.evaluate, recipe.promote
    if promote is not None and is_share(evaluate.primary) and promote.min_gain >= 1:
        yield ("promote", "min_gain"), f"no gain can exceed it: {share_hint(evaluate.primary, promote.min_gain)}"
    for guard in evaluate.guards:
        if is_share(guard.metric) and guard.max_drop >= 1:
            yield ("evaluate", "guards"), f"max_drop can never fail: {share_hint(guard.metric, guard.max_drop)}"


def find_remarks(recipe: Recipe) -> Problems:
    """Yield (path of the key, remark) for settings that are allowed but may not do what they seem to."""
    promote = recipe.promote
    if promote is not None and is_share(recipe.evaluate.primary) and promote.min_gain <= -1:
        yield ("promote", "min_gain"), "any model will be promoted, however bad: no share can fall by more than 1"


def _valid_problems(recipe: Recipe) -> Problems:
    """Yield what is wrong with the metrics of validation, and with what is to choose the checkpoint."""
    train, place = recipe.train, ("train", "valid_metrics")
    for name in train.valid_metrics:
        if name in _NEEDS_NO_ANSWER:
            anyway = "token_accuracy is" if name == "token_accuracy" else "the loss, whose exponent perplexity is, is"
            yield place, f"`{name}` is not computed from answers; {anyway} measured anyway"
    try:
        generated = answer_metrics(train.valid_metrics)
    except RecipeError as error:
        yield place, _told(error)
        return
    if "execution" in generated and recipe.evaluate.database is None:
        yield place, "`execution` needs evaluate.database"
    if not train.valid_metrics and train.valid_rows != Train.model_fields["valid_rows"].default:
        yield ("train", "valid_rows"), "has no effect without train.valid_metrics"
    measured = (*_MEASURED_ANYWAY, *generated)
    if train.select_best_by not in measured:
        known = ", ".join(measured)
        problem = f"`{train.select_best_by}` is not measured: name it in train.valid_metrics ({known} are)"
        yield ("train", "select_best_by"), problem


def _split_problems(recipe: Recipe) -> Problems:
    split, train = recipe.data.split, recipe.train
    if split.column is not None:
        return
    if split.test == 0:
        yield ("data", "split", "test"), "must be above 0: the verdict needs rows that training never saw"
    if split.valid == 0:
        given = {
            "valid_every_steps": train.valid_every_steps is not None,
            "valid_loss_rows": train.valid_loss_rows != Train.model_fields["valid_loss_rows"].default,
            "valid_metrics": bool(train.valid_metrics),
            "select_best_by": train.select_best_by != Train.model_fields["select_best_by"].default,
        }
        for key in (key for key, is_given in given.items() if is_given):
            yield ("train", key), "has no effect while data.split.valid is 0"


def _launch_problems(recipe: Recipe) -> Problems:
    launch = recipe.launch
    if launch.sharding not in ("full", "node"):
        if launch.offload:
            yield ("launch", "offload"), "has no effect unless `launch.sharding` is `full` or `node`"
        return
    if reason := sharding_unsupported_reason(recipe):
        yield ("launch", "sharding"), f"`{launch.sharding}` cannot be done: {reason}"
    elif launch.on != "local" and world_size_of(launch) == 1:
        yield ("launch", "sharding"), f"`{launch.sharding}` has no effect on one process"


def sharding_unsupported_reason(recipe: Recipe) -> str | None:
    """Return why each process has to keep all of the model; None where its layers can be divided."""
    if isinstance(recipe.tuning, Quantization) and recipe.tuning.bits == 8:
        return "weights of 8 bits are not divided; those of 4 can be"
    if isinstance(recipe.tuning, FullTuning) and recipe.train.optimizer in ("adafactor", "adamw_8bit"):
        return f"`{recipe.train.optimizer}` would remember something else of parts of a matrix than of all of it"
    return None


def _effectless(recipe: Recipe) -> Problems:
    source = recipe.data.source
    alone = source[0] if isinstance(source, tuple) and len(source) == 1 else source
    if not isinstance(alone, tuple) and alone.weight != 1:
        yield ("data", "source"), "`weight` has no effect on a source without others; see train_rows and train.epochs"
    if recipe.data.too_long == "split" and recipe.data.task != "text":
        yield (
            ("data", "too_long"),
            "`split` is for `task: text`: here a later block would lack the prompt that it answers",
        )
    reads_markup = recipe.data.task == "chat" or (recipe.data.task == "text" and recipe.data.control_tokens)
    if recipe.model.chat_markup is not None and not reads_markup:
        yield ("model", "chat_markup"), "has no effect where neither `task: chat` nor `control_tokens: true` reads it"
    if isinstance(recipe.train.micro_batch, int) and recipe.train.micro_batch > recipe.train.examples_per_step:
        yield ("train", "micro_batch"), "is more than train.examples_per_step, so a part of it would have no effect"
    if recipe.train.optimizer in ("adafactor", "sgd"):
        for beta in ("beta1", "beta2"):
            if getattr(recipe.train, beta) != Train.model_fields[beta].default:
                yield ("train", beta), f"has no effect on `{recipe.train.optimizer}`; it is AdamW's"
    if recipe.train.micro_batch != "auto" and recipe.train.micro_batch_tokens is not None:
        yield ("train", "micro_batch_tokens"), "has no effect beside train.micro_batch"


def _told(error: RecipeError) -> str:
    return f"{error.message}{f'; {error.hint}' if error.hint else ''}"
