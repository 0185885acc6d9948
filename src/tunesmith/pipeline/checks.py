"""What `plan` refuses, or warns of, about the base model and this machine before anything is computed."""

from collections.abc import Iterator
from contextlib import suppress

from tunesmith.architecture.base_model import (
    check_targets,
    embedding_rows,
    refuse_new_tokens_with_bias,
    refuse_pickle,
    refuse_quantized,
    require_embedding_rows,
    require_layers,
)
from tunesmith.architecture.causality import require_causal
from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.shapes import Shapes
from tunesmith.core.errors import RecipeError
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.data.fit import check_max_positions, check_packing_supported
from tunesmith.data.microbatch import ENCODER_CANNOT_PACK
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.data.used_rows import PreparedRows, UsedRows
from tunesmith.fetch.adapter_tokens import trained_token_ids
from tunesmith.fetch.reference import ModelFolder, open_pin, resolve, resolve_base
from tunesmith.inference.answerable import check_answerable
from tunesmith.inference.prompts import rows_to_answer, select_rows
from tunesmith.recipe.launch import SlurmLaunch
from tunesmith.recipe.schema import DataBase, Recipe
from tunesmith.recipe.tuning import LoraBase, Quantization
from tunesmith.recipe.validation import find_remarks
from tunesmith.tasks import task_for
from tunesmith.tasks.chatml import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter


def require_machine(recipe: Recipe, base: ModelFolder) -> None:
    """Raise RecipeError where this machine lacks what a precision, or weights or moments in few bits, need.

    Nothing slow is imported for others. What GPUs elsewhere lack is told by the first job.
    """
    if isinstance(recipe.launch, SlurmLaunch) and recipe.launch.gpus_per_node is not None:
        return
    if recipe.model.precision in ("fp16", "bf16") or isinstance(recipe.tuning, Quantization):
        from tunesmith.model.load import compute_config, require_precision

        require_precision(base, compute_config(recipe))
    if recipe.train.optimizer == "adamw_8bit":
        from tunesmith.train.optim import require_optimizer

        require_optimizer(recipe.train)
    if isinstance(recipe.tuning, Quantization):
        from tunesmith.model.load import compute_config
        from tunesmith.model.quantization import require_quantization

        compute = compute_config(recipe)
        require_quantization(recipe.tuning, compute.device, compute.dtype)


def check_base(recipe: Recipe, base: ModelFolder) -> Shapes:
    """Return the shapes of the base if a run can start from it.

    Weights are fetched where its configuration does not tell their shapes; of those that are here the headers are read.

    Raises:
        RecipeError: it is not causal; it has no weights, or they are quantized already, or are not those of its
            configuration; a name of `tuning.target` is none of its modules.
        DamagedFile: a file of the folder is not whole.
    """
    root = base.root
    refuse_pickle(root.path)
    if not (root.has_weights or root.to_fetch):
        raise RecipeError("holds no weights (*.safetensors)", where=str(root.path))
    require_causal(root.path)
    refuse_quantized(root.path)
    try:
        shapes = shapes_of(root.path)
    except RecipeError:
        if not root.to_fetch:
            raise
        shapes = shapes_of((open_pin(root.pin) if root.pin else resolve(root.reference)).path)
    embedding_rows(root.path, shapes.vocabulary)
    require_layers(root.path, shapes)
    if isinstance(recipe.tuning, LoraBase) and not isinstance(recipe.tuning.target, str):
        check_targets(root.path, shapes, recipe.tuning.target)
    return shapes


def check_rows(
    recipe: Recipe, base: ModelFolder, shapes: Shapes, tokenizer: TokenizerAdapter, rows: UsedRows
) -> TokenDataset:
    """Return the rows to train on if the model can read those of all splits.

    Raises:
        RecipeError: rows are longer than its positions, hold tokens that it has no vectors for, or must be packed
            and cannot be.
    """
    found = {split: rows.tokens(split) for split in SPLITS}
    check_max_positions(shapes.positions, max(tokens.max_length for tokens in found.values()))
    highest = max(tokens.max_token_id for tokens in found.values())
    require_embedding_rows(highest, _vectors(base, shapes, tokenizer), where=recipe.model.base)
    check_packing_supported(recipe, ENCODER_CANNOT_PACK if shapes.has_encoder else None)
    if tokenizer.new_ids and isinstance(recipe.tuning, LoraBase):
        refuse_new_tokens_with_bias(base.root.path)
    return found["train"]


def check_prompts(recipe: Recipe, positions: int | None, tokenizer: TokenizerAdapter, rows: UsedRows) -> Iterator[str]:
    """Yield warnings about the rows that will be answered for a metric.

    Args:
        recipe: whose metrics.
        positions: the model's maximum; None if it has none, or if it is unknown.
        tokenizer: of the base.
        rows: of all splits.

    Raises:
        RecipeError: so many have no room for an answer, or nothing that the metric counts, that there would be no
            verdict.
    """
    task = task_for(recipe.data, tokenizer)
    for split, count in rows_to_answer(recipe).items():
        everything = [rows.example(split, place) for place in range(len(rows.ledger_entries(split)))]
        examples, _ = select_rows(everything, count, recipe.seed)
        yield from check_answerable(recipe, task, tokenizer, examples, positions=positions, split=split)


def check_prepared_prompts(recipe: Recipe, run: RunDir) -> Iterator[str]:
    """Yield what `check_prompts` does, of the rows that `prepare` wrote.

    Not a part of training, which must not read the test rows.

    Raises:
        RecipeError: as `check_prompts`.
    """
    base = resolve_base(run, recipe.model.base)
    tokenizer = load_tokenizer(base, recipe.model.chat_markup)
    positions = None
    with suppress(RecipeError):  # an architecture without a known limit
        positions = shapes_of(base.root.path).positions
    yield from check_prompts(recipe, positions, tokenizer, PreparedRows(run))


def recipe_warnings(recipe: Recipe, base: ModelFolder, shapes: Shapes, tokenizer: TokenizerAdapter) -> Iterator[str]:
    """Yield what a run can do with and its owner should know."""
    yield from (f"{'.'.join(path)}: {remark}" for path, remark in find_remarks(recipe))
    vectors = _vectors(base, shapes, tokenizer)
    if tokenizer.vocab_size > vectors:
        yield (
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model's embedding {vectors:,} rows; no row of "
            "the data uses the others, but a prompt could"
        )
    most = recipe.data.max_tokens_per_example
    default = DataBase.model_fields["max_tokens_per_example"].default
    if shapes.positions is not None and most > shapes.positions and most != default:
        yield (
            f"data.max_tokens_per_example is {most:,} and the model knows {shapes.positions:,} positions: "
            f"`too_long: {recipe.data.too_long}` has no effect on rows in between, and they would be refused"
        )


def _vectors(base: ModelFolder, shapes: Shapes, tokenizer: TokenizerAdapter) -> int:
    """Return for how many tokens there are vectors when training starts: rows are added up to the last new token."""
    most = max((shapes.vocabulary, *(token + 1 for token in tokenizer.new_ids)))
    while base.base is not None:
        most = max((most, *(token + 1 for token in trained_token_ids(base.path))))
        base = base.base
    return most
