"""Check the base model, the rows and this machine before anything is computed."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tunesmith.architecture import base_model
from tunesmith.architecture.causality import require_causal
from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.freezing import refuse_frozen_tokens
from tunesmith.architecture.shapes import Shapes
from tunesmith.core.errors import RecipeError
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.data.dataset import PreparedRows, UsedRows
from tunesmith.data.fit import check_max_positions, check_packing_supported
from tunesmith.data.microbatch import ENCODER_CANNOT_PACK
from tunesmith.data.prepare import errors_of_set, prepare_sets
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.evaluate.incumbent import IncumbentCheck, check_incumbent
from tunesmith.export.requests import check_base_for_exports
from tunesmith.fetch.adapter_tokens import trained_token_ids
from tunesmith.fetch.reference import ModelFolder, open_pin, resolve, resolve_base
from tunesmith.inference.answerable import check_answerable
from tunesmith.inference.prompts import rows_to_answer, select_examples
from tunesmith.recipe.also import recipe_of_set
from tunesmith.recipe.launch import SlurmLaunch
from tunesmith.recipe.schema import AlsoBase, DataBase, Recipe
from tunesmith.recipe.tuning import FullTuning, LoraBase, Quantization
from tunesmith.recipe.validation import find_remarks
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter


def require_machine(recipe: Recipe, base: ModelFolder) -> None:
    """Raise RecipeError if this machine cannot compute in the recipe's precision, quantization or 8-bit optimizer.

    Slow packages are imported only for recipes that ask for one of these. The GPUs of a cluster are checked by the
    first job.
    """
    if isinstance(recipe.launch, SlurmLaunch) and recipe.launch.gpus_per_node is not None:
        return
    quantization = recipe.tuning if isinstance(recipe.tuning, Quantization) else None
    if recipe.model.precision in ("fp16", "bf16") or quantization:
        from tunesmith.model.load import compute_config, require_precision

        compute = compute_config(recipe)
        require_precision(base, compute)
    if recipe.train.optimizer == "adamw_8bit":
        from tunesmith.train.optim import require_optimizer

        require_optimizer(recipe.train)
    if quantization:
        from tunesmith.model.quantization import require_quantization

        require_quantization(quantization, compute.device, compute.dtype)


def check_base(recipe: Recipe, base: ModelFolder) -> Shapes:
    """Check that a run can start from a base, and return the base's shapes.

    The shapes are derived from the configuration if possible. Otherwise the weights are fetched and their headers read.

    Raises:
        RecipeError: the base is not causal; its weights are missing, quantized, or do not match its configuration; a
            name in `tuning.target` or `tuning.freeze` is not one of its modules; a format of `export` cannot hold it.
        DamagedFile: a file of the folder is incomplete.
    """
    root = base.root
    base_model.refuse_pickle(root.path)
    if not (root.has_weights or root.to_fetch):
        hint = "download the model again, or save it with save_pretrained"
        raise RecipeError("contains no weights (*.safetensors)", where=str(root.path), hint=hint, code="no-weights")
    require_causal(root.path)
    base_model.refuse_quantized(root.path)
    try:
        shapes = shapes_of(root.path)
    except RecipeError:
        if not root.to_fetch:
            raise
        shapes = shapes_of((open_pin(root.pin) if root.pin else resolve(root.reference)).path)
    base_model.require_vocabulary(root.path, shapes.vocabulary)
    base_model.require_layers(root.path, shapes)
    if isinstance(recipe.tuning, LoraBase) and not isinstance(recipe.tuning.target, str):
        base_model.check_targets(root.path, shapes, recipe.tuning.target)
    if isinstance(recipe.tuning, FullTuning) and recipe.tuning.freeze:
        from tunesmith.model.trainable import check_freeze  # imports torch

        check_freeze(root.path, recipe.tuning.freeze)
    check_base_for_exports(recipe, base)
    return shapes


def check_rows(
    recipe: Recipe, base: ModelFolder, shapes: Shapes, tokenizer: TokenizerAdapter, rows: UsedRows
) -> TokenDataset:
    """Return the tokens of the training rows if the model can read the rows of all splits.

    Raises:
        RecipeError: a row is longer than the model's positions or has a token without an embedding, the recipe
            requires packing and the model does not support it, or the rows of new tokens cannot be trained.
    """
    splits = {split: rows.tokens(split) for split in SPLITS}
    check_max_positions(shapes.positions, max(tokens.max_length for tokens in splits.values()))
    highest_id = max(tokens.max_token_id for tokens in splits.values())
    rows_at_start = _embedding_rows(base, shapes, tokenizer)
    base_model.require_embedding_rows(highest_id, rows_at_start, where=recipe.model.base)
    check_packing_supported(recipe, ENCODER_CANNOT_PACK if shapes.has_encoder else None)
    if tokenizer.new_ids and isinstance(recipe.tuning, LoraBase):
        base_model.require_trainable_rows(base.root.path, shapes)
    if tokenizer.new_ids and isinstance(recipe.tuning, FullTuning):
        refuse_frozen_tokens(recipe.tuning.freeze)
    return splits["train"]


def count_new_tokens(tokenizer: TokenizerAdapter, train_rows: TokenDataset) -> dict[str, int]:
    """Return how often each token that the recipe adds occurs in the training rows."""
    return {tokenizer.decode([token]): n for token, n in train_rows.count_tokens(tokenizer.new_ids).items()}


def unseen_token_warnings(counts: dict[str, int]) -> Iterator[str]:
    """Yield a warning about the new tokens that no training row has; `counts` are those of `count_new_tokens`."""
    if unseen := [token for token, count in counts.items() if not count]:
        shown = ", ".join(f"`{token}`" for token in unseen[:8])
        others = f" and {len(unseen) - 8:,} others" if len(unseen) > 8 else ""
        yield f"no training row has the new token {shown}{others}, so the model cannot learn what it means"


def check_prompts(recipe: Recipe, positions: int | None, tokenizer: TokenizerAdapter, rows: UsedRows) -> Iterator[str]:
    """Yield warnings about the valid and test rows that the model will answer.

    Args:
        positions: the model's maximum; None if it has none, or if it is unknown.

    Raises:
        RecipeError: so many rows have no room for an answer, or nothing that a metric counts, that there would be no
            verdict.
    """
    for split, count in rows_to_answer(recipe).items():
        examples = select_examples(rows, split, count, recipe.seed)
        yield from check_answerable(recipe, tokenizer, examples, positions=positions, split=split)


def check_version_to_replace(recipe: Recipe, base: ModelFolder, rows: UsedRows, folder: Path) -> IncumbentCheck | None:
    """Check whether the version that a promotion would replace can be compared on the test rows; None if there is none.

    Args:
        folder: the folder of the recipe's sources.
    """
    examples = select_examples(rows, "test", recipe.evaluate.rows, recipe.seed)
    return check_incumbent(recipe, base, examples, folder)


def check_prepared_prompts(recipe: Recipe, run: RunDir) -> Iterator[str]:
    """Yield the warnings of `check_prompts`, `check_version_to_replace` and further sets about prepared rows.

    A set that was added since `prepare` is prepared. Called before training instead of in it, because training must
    not read the test rows.

    Raises:
        RecipeError: as `check_prompts`.
        DataError: as `prepare_sets`.
    """
    base = resolve_base(run, recipe.model.base)
    check_base_for_exports(recipe, base)
    tokenizer = load_tokenizer(base, recipe.model)
    positions = None
    with suppress(RecipeError):  # an architecture with an unknown limit
        positions = shapes_of(base.root.path).positions
    if tokenizer.new_ids:
        yield from unseen_token_warnings(count_new_tokens(tokenizer, PreparedRows(run).tokens("train")))
    yield from check_prompts(recipe, positions, tokenizer, PreparedRows(run))
    incumbent = check_version_to_replace(recipe, base, PreparedRows(run), run.recipe_folder)
    if incumbent is not None and incumbent.warning:
        yield incumbent.warning
    prepare_sets(recipe, run, PreparedRows(run))
    for entry in recipe.evaluate.also:
        yield from check_set(recipe, entry, positions, tokenizer, PreparedRows(run.further_set(entry.name)))


def check_set(
    recipe: Recipe, entry: AlsoBase, positions: int | None, tokenizer: TokenizerAdapter, rows: UsedRows
) -> Iterator[str]:
    """Yield warnings about the rows of a further held-out set that the model will answer.

    Raises:
        RecipeError: as `check_prompts`, or a row is longer than the model's positions.
    """
    with errors_of_set(entry.name):
        check_max_positions(positions, rows.tokens("test").max_length)
        yield from (
            f"{entry.name}: {text}" for text in check_prompts(recipe_of_set(recipe, entry), positions, tokenizer, rows)
        )


def recipe_warnings(recipe: Recipe, base: ModelFolder, shapes: Shapes, tokenizer: TokenizerAdapter) -> Iterator[str]:
    """Yield warnings about settings that are allowed but may be mistakes.

    Raises:
        RecipeError: the base has experts, which cannot be adapted with the settings of `tuning`.
    """
    yield from (f"{'.'.join(path)}: {remark}" for path, remark in find_remarks(recipe))
    yield from _expert_warnings(recipe, base)
    embedding_size = _embedding_rows(base, shapes, tokenizer)
    if tokenizer.vocab_size > embedding_size:
        yield (
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the model's embedding has {embedding_size:,} "
            "rows; the data uses none of the tokens without a row, but a prompt could"
        )
    max_tokens = recipe.data.max_tokens_per_example
    default = DataBase.model_fields["max_tokens_per_example"].default
    if shapes.positions is not None and max_tokens > shapes.positions and max_tokens != default:
        yield (
            f"data.max_tokens_per_example is {max_tokens:,}, but the model has {shapes.positions:,} positions: rows "
            f"of a length in between are refused instead of being handled by `too_long: {recipe.data.too_long}`"
        )


def _expert_warnings(recipe: Recipe, base: ModelFolder) -> Iterator[str]:
    """Yield warnings if experts stay frozen under LoRA or are not quantized. Imports torch for a mixture only."""
    config = base_model.language_config(base.root.path)
    has_experts = any("expert" in key and isinstance(value, int) and value > 1 for key, value in config.items())
    if has_experts and isinstance(recipe.tuning, LoraBase):
        from tunesmith.model.experts import check_experts

        yield from check_experts(base.root.path, recipe.tuning)


def _embedding_rows(base: ModelFolder, shapes: Shapes, tokenizer: TokenizerAdapter) -> int:
    """Return the number of embedding rows when training starts, with the rows added for new tokens."""
    rows = max((shapes.vocabulary, *(token + 1 for token in tokenizer.new_ids)))
    while base.base is not None:
        rows = max((rows, *(token + 1 for token in trained_token_ids(base.path))))
        base = base.base
    return rows
