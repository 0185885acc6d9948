"""The sections `data.source`, `data.valid`, `data.test`, `data.filters` and `data.split`: sources and rules of rows."""

from typing import Annotated, Any, Literal, Self

import regex
from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.base import Fraction, NonEmptyStrings, Section, checked_by, setting_error


def _check_pattern(pattern: str) -> None:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise RecipeError(f"is not a regular expression: {error}", code="wrong-value") from None


Pattern = Annotated[str, Field(min_length=1), checked_by(_check_pattern)]
Scalar = bool | int | float | str


class SourceBase(Section):
    """Keys that all kinds of sources share."""

    name: str | None = Field(
        None, min_length=1, description="Name in `prepare/rows.jsonl`; default its file, dataset or generator."
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How many times each training row of this source is used in one epoch, relative to other sources: "
        "2 is twice; 0.5 is half of the rows, chosen by hash. Validation and test rows are always used once.",
    )
    loss_weight: float = Field(
        1.0, gt=0, le=1000, description="Weight of this source's trained tokens in the loss, relative to other sources."
    )
    rename: dict[str, str] = Field({}, description="Columns to rename, as {old: new}.")


class FileSource(SourceBase):
    """Rows from local files."""

    file: str | NonEmptyStrings = Field(
        description="CSV, TSV, JSON, JSONL, Parquet or Arrow, relative to the recipe: a file (text also as .gz or "
        ".zst), a pattern such as `data/*.jsonl`, or a folder of shards; "
        "or an address (`https://`, `s3://`, `gs://`, ...). See docs/data.md."
    )
    quote: Literal["double", "none"] = Field(
        "double",
        description='CSV and TSV: `double` if cells may be in "quotes"; `none` if a quote is an ordinary character.',
    )


class HubSource(SourceBase):
    """Rows from a dataset on the hub, or from a local folder with the layout of one."""

    hub: str = Field(description="`org/name` of the dataset.")
    revision: str | None = Field(None, description="Commit, tag or branch. Only a commit makes the run repeatable.")
    config: str | None = Field(None, description="Configuration of the dataset, if it has several.")
    split: str = Field("train", description="Split of the dataset to read.")


class GeneratedSource(SourceBase):
    """Rows from one of tunesmith's generators."""

    generated: Literal["shop-sql"] = Field(description="`shop-sql`: questions about a shop's database, with their SQL.")
    rows: int = Field(2000, ge=10, description="Number of rows to generate.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the generator.")


class EmbeddedSource(SourceBase):
    """Rows that come with tunesmith."""

    embedded: Literal["general"] = Field(
        description="`general`: texts, questions and answers of many kinds, to measure what a model has forgotten."
    )


_KINDS = ("file", "hub", "generated", "embedded")
_KEYS = ", ".join(f"`{kind}`" for kind in _KINDS)


def _source_kind(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "list"
    if isinstance(value, int | float):
        return "fraction"
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, Section) else {}
    return next((key for key in _KINDS if key in keys), None)


def _check_not_empty(sources: tuple[SourceBase, ...]) -> tuple[SourceBase, ...]:
    # pydantic's min_length would also complain about a list whose items are wrong.
    if not sources:
        raise setting_error("wrong-value", "must not be empty")
    return sources


_by_kind = Discriminator(
    _source_kind,
    custom_error_type="missing-key",
    custom_error_message=f"must have one of the keys {_KEYS}",
)
_Source = (
    Annotated[FileSource, Tag("file")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[GeneratedSource, Tag("generated")]
    | Annotated[EmbeddedSource, Tag("embedded")]
)
Source = Annotated[_Source, _by_kind]
Sources = Annotated[_Source | Annotated[tuple[Source, ...], AfterValidator(_check_not_empty), Tag("list")], _by_kind]


HeldOut = Annotated[
    Annotated[Fraction, Tag("fraction")]
    | Annotated[FileSource, Tag("file")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[GeneratedSource, Tag("generated")]
    | Annotated[EmbeddedSource, Tag("embedded")]
    | Annotated[tuple[Source, ...], AfterValidator(_check_not_empty), Tag("list")],
    Discriminator(
        _source_kind,
        custom_error_type="missing-key",
        custom_error_message=f"must be a fraction or have one of the keys {_KEYS}",
    ),
]
"""Where validation or test rows come from: a fraction of the rows of `data.source`, or sources of their own."""


class Filter(Section):
    """A rule for one column; rows that break it are left out. An empty cell counts as empty text."""

    column: str = Field(
        description="The column, by its name after `rename`, or a path into one, such as `meta.language`."
    )
    equals: Scalar | None = Field(None, description="The cell must equal this value; the text `1` equals the number 1.")
    not_equals: Scalar | None = Field(None, description="The cell must not equal this value.")
    one_of: tuple[Scalar, ...] | None = Field(None, min_length=1, description="The cell must be one of these values.")
    matches: Pattern | None = Field(None, description="A regular expression that must match somewhere in the cell.")
    not_matches: Pattern | None = Field(None, description="A regular expression that must match nowhere in the cell.")
    min: float | None = Field(None, description="Smallest number allowed.")
    max: float | None = Field(None, description="Largest number allowed.")
    min_characters: int | None = Field(None, ge=1, description="Minimum length of the text.")
    max_characters: int | None = Field(None, ge=0, description="Maximum length of the text.")

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        rules = [name for name in type(self).model_fields if name != "column"]
        if all(getattr(self, name) is None for name in rules):
            raise setting_error("no-effect", f"has no rule for the column; add one of {', '.join(rules)}")
        for low, high in (("min", "max"), ("min_characters", "max_characters")):
            smallest, largest = getattr(self, low), getattr(self, high)
            if smallest is not None and largest is not None and smallest > largest:
                raise setting_error("contradiction", f"`{low}` is above `{high}`, so no row could pass")
        return self


class Split(Section):
    """How rows are divided. A hash selects the split of each row, so adding rows never moves the others."""

    valid: Fraction = Field(0.05, description="Fraction of the rows for validation during training.")
    test: Fraction = Field(0.10, description="Fraction of the rows for the verdict; never used in training.")
    by: str | None = Field(
        None,
        description="Column, or path into one, that groups rows, such as a conversation or a database. Rows of a group "
        "stay in one split and count as one unit in the verdict. With `column`, the groups are used in the verdict "
        "only.",
    )
    column: str | None = Field(
        None,
        description="Column that holds the split of each row: `train`, `valid`, `test` or another usual name, "
        "such as `validation`.",
    )

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        if self.column is not None and self.changed("valid", "test"):
            raise setting_error("no-effect", "`column` decides the split, so `valid` and `test` would have no effect")
        if self.valid + self.test >= 1:
            raise setting_error("contradiction", "`valid` and `test` leave no rows to train on")
        return self
