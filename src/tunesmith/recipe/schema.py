"""The keys of a recipe, as pydantic models whose descriptions become docs/recipe.md.

Key names contain their units. `tuning`, `data` and `launch` are unions, discriminated by `method`, `task` and `on`, and
`data.source` is one discriminated by its key, so that keys without meaning for the chosen kind are errors.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from tunesmith.core.verdict import MIN_SEEDS
from tunesmith.recipe.base import Date, Fraction, NonEmptyStrings, Section, setting_error
from tunesmith.recipe.data_source import Filter, HeldOut, Sources, Split
from tunesmith.recipe.export import Export
from tunesmith.recipe.general_set import GENERAL, complete_general_sets
from tunesmith.recipe.guards import Guard, HarnessTask, Name, require_distinct
from tunesmith.recipe.launch import Launch, LocalLaunch, SlurmLaunch, TorchrunLaunch
from tunesmith.recipe.model import Model
from tunesmith.recipe.promotion import Promote
from tunesmith.recipe.sampling import Sampling
from tunesmith.recipe.template import PromptTemplate, Template
from tunesmith.recipe.training import Train
from tunesmith.recipe.tuning import Tuning


class DataBase(Section):
    """Keys that all tasks share."""

    source: Sources = Field(description="Where the rows come from; a list mixes several sources.")
    valid: HeldOut | None = Field(
        None,
        description="Where the validation rows come from: a source of their own, with the keys of `source`, such as "
        "the dataset's own file or split; or a fraction of the rows of `source`, short for `split.valid`.",
    )
    test: HeldOut | None = Field(
        None,
        description="Where the test rows come from: a source of their own, with the keys of `source`, such as the "
        "official test set; or a fraction of the rows of `source`, short for `split.test`.",
    )
    filters: tuple[Filter, ...] = Field((), description="Rules for rows; a row that breaks one is left out.")
    split: Split = Field(Split(), description="How rows are divided into train, valid and test.")
    train_rows: int | float | None = Field(
        None, description="Use only this many training rows, or this fraction of them (below 1), chosen by hash."
    )
    duplicates: Literal["keep", "drop"] = Field("keep", description="`drop` keeps only one of identical training rows.")
    leakage: Literal["warn", "error", "drop"] = Field(
        "warn",
        description="What to do if a valid or test row duplicates a training row, exactly or nearly: `warn`, stop with "
        "an `error`, or `drop` the training row.",
    )
    near_duplicate_threshold: float = Field(
        0.8, ge=0.5, le=1, description="Minimum similarity of near-duplicates (Jaccard index of three-word shingles)."
    )
    max_tokens_per_example: int = Field(1024, ge=8, description="Maximum tokens per example; see `too_long`.")
    too_long: Literal["drop", "truncate", "split"] = Field(
        "drop",
        description="`drop` the row; `truncate` it, so that the model is not trained on its end; or, for "
        "`task: text`, `split` it into blocks, so that every token is trained on.",
    )
    max_dropped_fraction: Fraction = Field(0.01, description="Stop if a larger fraction of the rows is dropped.")
    train_on_end: bool = Field(
        True,
        description="Train on the token that ends an answer or a document. If false, the model does not learn to stop: "
        "an answer ends at its token limit, unless the base already ends answers.",
    )

    @model_validator(mode="after")
    def _check_held_out(self) -> Self:
        for name in ("valid", "test"):
            if getattr(self, name) is None:
                continue
            if getattr(self.split, name) != Split.model_fields[name].default:
                raise setting_error("contradiction", f"`{name}` and `split.{name}` both decide the {name} rows")
            if self.split.column is not None:
                raise setting_error("contradiction", f"`split.column` and `{name}` both decide the {name} rows")
        return self

    @field_validator("train_rows")
    @classmethod
    def _check_train_rows(cls, value: float | None) -> float | None:
        if value is not None and not (value >= 1 if isinstance(value, int) else 0 < value < 1):
            raise setting_error("wrong-value", f"must be a number of rows (1 or more) or a fraction (found {value})")
        return value


class TextData(DataBase):
    """Language modelling on documents: every token is trained on."""

    task: Literal["text"]
    text: Template = Field(description="A column, or a template such as `{title}: {description}`.")
    control_tokens: bool = Field(
        False, description="Encode markup in the text, such as <|im_start|>, as control tokens, if it is intended."
    )
    sample_prefix_tokens: int = Field(8, ge=1, description="How many of a document's tokens prompt it in evaluation.")


class AnswerData(DataBase):
    """Keys of the tasks whose rows have an answer."""

    references: str | NonEmptyStrings | None = Field(
        None,
        description="Columns of the references for scoring, each a text or a list of texts; default is the answer "
        "that is trained on. The best of a row's references counts; a row without any is scored against its answer.",
    )


class CompletionData(AnswerData):
    """A prompt and its answer, without a chat template; only the answer is trained on."""

    task: Literal["completion"]
    prompt: PromptTemplate = Field(description="Template of the prompt; `{column?}` may be empty, `{column}` may not.")
    response: PromptTemplate = Field(description="Template of the answer.")


class Seq2SeqData(AnswerData):
    """A source for the encoder and a target for the decoder (T5, BART); only the target is trained on.

    `max_tokens_per_example` limits the source.
    """

    task: Literal["seq2seq"]
    prompt: PromptTemplate = Field(description="Template of the source; `{column?}` may be empty, `{column}` may not.")
    response: PromptTemplate = Field(description="Template of the target.")
    max_target_tokens: int = Field(256, ge=2, description="Maximum tokens per target; see `too_long`.")


class ChatData(AnswerData):
    """Conversations in the model's chat template; only the assistant's turns are trained on."""

    task: Literal["chat"]
    prompt: PromptTemplate | None = Field(None, description="Template of the user's turn; `{column?}` may be empty.")
    response: PromptTemplate | None = Field(None, description="Template of the assistant's turn.")
    messages: str | NonEmptyStrings | None = Field(
        None,
        description="Column of lists of {role, content} or, as ShareGPT has them, {from, value}; no templates. Several "
        "columns, such as [prompt, completion], are read one after the other, and only answers of the last are trained "
        "on.",
    )
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(
        {},
        description="Unusual names of roles in `messages`, such as {customer: user, agent: assistant}. `human`, `gpt`, "
        "`model`, `bot`, `observation` and other usual names are known.",
    )
    system: Template | None = Field(None, description="Template of a system turn; no turn for rows where it is empty.")
    train_on: Literal["all", "last"] = Field("all", description="Train on all turns of the assistant, or on the last.")
    tools: str | tuple[dict[str, JsonValue], ...] | None = Field(
        None,
        description="Tools for the chat template: a column with a list of {name, description, parameters} or of "
        "OpenAI's {type, function}, also as JSON text, or one list for all rows.",
    )
    reasoning: Literal["keep", "strip", "mask"] | None = Field(
        None,
        description="Thoughts of answers, in `reasoning_content` or as <think>...</think> in the content: `keep` "
        "trains on them, `strip` removes them, `mask` shows them without training on them. Answers are then judged "
        "without their thoughts. By default they are part of the content.",
    )
    template_arguments: dict[str, JsonValue] = Field(
        {},
        description="Variables of the chat template, such as `{enable_thinking: false}`, in training, evaluation, "
        "`generate` and `chat` alike.",
    )
    template_date: Date | None = Field(
        None,
        description="The date that a chat template writes as today's, such as 2026-05-01, in training, evaluation, "
        "`generate` and `chat` alike; default the current date.",
    )

    @model_validator(mode="after")
    def _check_turns(self) -> Self:
        pair = self.prompt is not None and self.response is not None
        if self.messages is None and not pair:
            raise setting_error("missing-key", "give `prompt` and `response`, or `messages`")
        if self.messages is not None and (self.prompt is not None or self.response is not None):
            raise setting_error("contradiction", "`messages` holds all turns; remove `prompt` and `response`")
        if pair and self.roles:
            raise setting_error("no-effect", "`roles` has no effect without `messages`; remove it")
        if pair and self.train_on == "last":
            raise setting_error("no-effect", "`train_on` has no effect on one pair of turns; remove it")
        return self

    @field_validator("template_arguments")
    @classmethod
    def _check_template_arguments(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if own := sorted(value.keys() & {"messages", "tools", "add_generation_prompt"}):
            raise setting_error("contradiction", f"`{own[0]}` is set for each row; remove it")
        return value


Data = Annotated[TextData | CompletionData | ChatData | Seq2SeqData, Field(discriminator="task")]


class AlsoBase(DataBase):
    """A further held-out set, on which the tuned model must not get worse.

    Its rows are described as in `data`, and all of them are test rows.
    """

    name: Name = Field(description="Name of the set in the verdict and in the report.")
    metrics: tuple[str, ...] = Field(min_length=1, description="Metrics to measure, as in `evaluate.metrics`.")
    primary: str | None = Field(None, description="The metric that must not drop; default the first of `metrics`.")
    rows: int = Field(200, ge=1, description="Number of rows, chosen by hash.")
    max_new_tokens: int = Field(128, ge=1, description="Maximum number of tokens in an answer.")
    max_drop: float = Field(
        gt=0, description="In the unit of `primary`: the interval of its change must be above -max_drop."
    )

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        unused = self.changed("valid", "test", "train_rows", "duplicates", "leakage", "near_duplicate_threshold")
        unused += [f"split.{key}" for key in self.split.changed("valid", "test", "column")]
        sources = self.source if isinstance(self.source, tuple) else (self.source,)
        unused += [key for source in sources for key in source.changed("weight", "loss_weight")]
        if unused:
            raise setting_error("no-effect", f"`{unused[0]}` has no effect, because all rows of the set are test rows")
        return self


class AlsoText(AlsoBase, TextData):
    """A held-out set of documents."""


class AlsoCompletion(AlsoBase, CompletionData):
    """A held-out set of prompts and answers without a chat template."""


class AlsoSeq2Seq(AlsoBase, Seq2SeqData):
    """A held-out set of sources and targets."""


class AlsoChat(AlsoBase, ChatData):
    """A held-out set of conversations."""


Also = Annotated[AlsoText | AlsoCompletion | AlsoChat | AlsoSeq2Seq, Field(discriminator="task")]


def _add_general(schema: dict[str, Any]) -> None:
    """Add the short form `general` to the JSON schema of `evaluate.also`."""
    schema["items"] = {"anyOf": [{"const": GENERAL}, schema["items"]]}


class Evaluate(Section):
    """How the base and the tuned model are compared, on the same test rows."""

    metrics: tuple[str, ...] = Field(
        min_length=1,
        description="Metrics to measure: rouge1, rouge2, ..., rougeL, rougeLsum, `rouge` for these four, rougeW, "
        "rougeS, rougeSU, exact_match, bleu, chrf, execution, json_valid, json_field_f1, tool_call, tool_call_name, "
        "tool_call_f1, loss, perplexity, token_accuracy, or `module:function` for a function of yours, in a file next "
        "to the recipe or in an installed package. See docs/metrics.md.",
    )
    primary: str = Field(description="The metric that decides the verdict.")
    rows: int = Field(200, ge=1, description="Number of test rows, chosen by hash.")
    max_new_tokens: int = Field(128, ge=1, description="Maximum number of tokens in an answer.")
    beams: int = Field(1, ge=1, description="Beams of the beam search; 1 is greedy decoding.")
    sampling: Sampling = Field(Sampling(), description="How answers are decoded, in validation as well; else greedily.")
    samples: int = Field(
        1,
        ge=1,
        description="Number of sampled answers to each test row. A row's score is their mean (mean@k), and pass@k is "
        "measured as well. Needs a temperature. See docs/metrics.md.",
    )
    stop: tuple[str, ...] = Field((), description="Texts before which an answer ends, in validation as well.")
    confidence: float = Field(0.95, ge=0.5, le=0.999, description="Confidence level of all intervals.")
    guards: tuple[Guard, ...] = Field((), description="Metrics that must not get worse.")
    also: tuple[Also, ...] = Field(
        (),
        description="Further held-out sets on which the model must not get worse; `general` is one that comes with "
        "tunesmith. See docs/forgetting.md.",
        json_schema_extra=_add_general,
    )
    lm_eval: tuple[HarnessTask, ...] = Field(
        (), description="Tasks of lm-evaluation-harness on which the model must not get worse. See docs/forgetting.md."
    )
    database: str | None = Field(
        None, description="SQLite file for `execution`, relative to the recipe, or `generated:shop-sql`."
    )

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """The metrics of the test rows and of the further held-out sets."""
        return (*self.metrics, *(metric for entry in self.also for metric in entry.metrics))

    @field_validator("also", mode="before")
    @classmethod
    def _check_short_forms(cls, value: Any) -> Any:
        for name in value if isinstance(value, list | tuple) else ():
            if isinstance(name, str):
                raise setting_error("wrong-value", f"`{name}` is not a set that comes with tunesmith; `{GENERAL}` is")
        return value

    @field_validator("also")
    @classmethod
    def _check_names(cls, value: tuple[Also, ...]) -> tuple[Also, ...]:
        require_distinct(entry.name for entry in value)
        return value

    @field_validator("lm_eval")
    @classmethod
    def _check_task_names(cls, value: tuple[HarnessTask, ...], info: ValidationInfo) -> tuple[HarnessTask, ...]:
        require_distinct((*(entry.name for entry in info.data.get("also", ())), *(entry.set_name for entry in value)))
        return value


class Recipe(Section):
    """A run, from rows to a promoted model."""

    name: Name = Field(description="Name of the run; its folder is `runs/NAME/ID`.")
    model: Model
    data: Data
    tuning: Tuning
    train: Train
    evaluate: Evaluate
    promote: Promote | None = Field(None, description="Promotion of a better model; else the run ends with a verdict.")
    export: tuple[Export, ...] | None = Field(
        None,
        description="Formats of other programs in which the model is written after promotion, each with a proof that "
        "it is still the same model. See docs/export.md.",
    )
    launch: Launch = Field(LocalLaunch(on="local"), description="Where the run's processes are started, and how many.")
    trackers: tuple[Literal["trackio", "mlflow", "tensorboard", "wandb"], ...] = Field(
        (),
        description="Trackers in addition to `metrics.jsonl`; each needs the extra of its name. See docs/tracking.md.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the split, row order, initial adapter and dropout.")

    replicates: int | None = Field(
        None,
        ge=MIN_SEEDS,
        description="Number of seeds to train with, `seed` and those that follow it: 3 or more. All models answer the "
        "same test rows, and the verdict covers rows and seeds. Default: one seed is trained. See docs/verdict.md.",
    )

    @property
    def further_seeds(self) -> tuple[int, ...]:
        """The seeds of `replicates` after the recipe's own."""
        return tuple((self.seed + number) % 2**63 for number in range(1, self.replicates or 1))

    @property
    def decoding(self) -> Evaluate:
        """The settings for decoding answers, to valid rows as well as test rows.

        The inputs of training record them under this name, by which `changed_keys` finds their defaults.
        """
        return self.evaluate

    @property
    def min_gain(self) -> float:
        """The gain over the base that the verdict `better` requires."""
        return self.promote.min_gain if self.promote else 0.0

    @model_validator(mode="before")
    @classmethod
    def _complete_general_sets(cls, values: Any) -> Any:
        return complete_general_sets(values)

    @field_validator("launch", mode="before")
    @classmethod
    def _local_by_default(cls, value: object) -> object:
        """Add `on: local` if no key needs another `on`, so that a wrong key is reported as an unknown one."""
        other_keys = {*TorchrunLaunch.model_fields, *SlurmLaunch.model_fields}.difference(LocalLaunch.model_fields)
        if isinstance(value, dict) and "on" not in value and other_keys.isdisjoint(value):
            return {"on": "local", **value}
        return value

    @field_validator("export", mode="before")
    @classmethod
    def _check_exports(cls, value: Any) -> Any:
        if value == []:
            raise setting_error("wrong-value", "must not be empty; remove it to export nothing")
        return value

    @field_validator("trackers")
    @classmethod
    def _check_unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := next((name for name in value if value.count(name) > 1), None):
            raise setting_error("wrong-value", f"names `{repeated}` twice")
        return value
