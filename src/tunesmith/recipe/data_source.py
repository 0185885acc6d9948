"""Where rows come from, and which of them are left out: `data.source` and `data.filters`."""

from typing import Annotated, Any, Literal, Self

import regex
from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.base import NonEmptyStrings, Section, checked_by


def _check_pattern(pattern: str) -> None:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise RecipeError(f"is not a regular expression: {error}") from None


Pattern = Annotated[str, Field(min_length=1), checked_by(_check_pattern)]
Scalar = bool | int | float | str


class SourceBase(Section):
    """What all sources share."""

    name: str | None = Field(
        None, min_length=1, description="What the ledger calls the source; default its file, dataset or generator."
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How often a training row of it is used in one pass, beside other sources: 2 is twice, 0.5 is "
        "every other row, chosen by hash. Valid and test rows are always used once.",
    )
    rename: dict[str, str] = Field({}, description="Columns to rename, as {theirs: ours}.")


class FileSource(SourceBase):
    """Rows from local files."""

    file: str | NonEmptyStrings = Field(
        description="CSV, TSV, JSON, JSONL, Parquet or Arrow file(s), relative to the recipe."
    )
    quote: Literal["double", "none"] = Field(
        "double",
        description='CSV and TSV: `double` if cells may be in "quotes", `none` if a quote is an ordinary character.',
    )


class HubSource(SourceBase):
    """Rows from a dataset on the hub, or from a local folder laid out like one."""

    hub: str = Field(description="`org/name` of the dataset.")
    revision: str | None = Field(None, description="Commit, tag or branch; give a commit to make the run repeatable.")
    config: str | None = Field(None, description="Configuration of the dataset, where it has several.")
    split: str = Field("train", description="Split of the dataset to read.")


class GeneratedSource(SourceBase):
    """Rows that tunesmith makes itself."""

    generated: Literal["shop-sql"] = Field(description="Name of the generator: questions to a shop database.")
    rows: int = Field(2000, ge=10, description="How many rows to make.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the generator.")


def _kind_of_source(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "list"
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, Section) else {}
    return next((key for key in ("file", "hub", "generated") if key in keys), None)


def _not_empty(sources: tuple[SourceBase, ...]) -> tuple[SourceBase, ...]:
    # pydantic's own limit of length also complains about a list whose items are wrong.
    if not sources:
        raise ValueError("must not be empty")
    return sources


_by_its_key = Discriminator(
    _kind_of_source,
    custom_error_type="no_source",
    custom_error_message="must have one of the keys `file`, `hub`, `generated`",
)
Source = Annotated[
    Annotated[FileSource, Tag("file")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[GeneratedSource, Tag("generated")],
    _by_its_key,
]
Sources = Annotated[
    Annotated[FileSource, Tag("file")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[GeneratedSource, Tag("generated")]
    | Annotated[tuple[Source, ...], AfterValidator(_not_empty), Tag("list")],
    _by_its_key,
]


class Filter(Section):
    """A rule for one column; a row that breaks it is left out. An empty cell is text without characters."""

    column: str = Field(description="The column, by the name it has after `rename`.")
    equals: Scalar | None = Field(None, description="The cell must be this; the text `1` is the number 1 too.")
    not_equals: Scalar | None = Field(None, description="The cell must not be this.")
    one_of: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = Field(
        None, description="The cell must be one of these."
    )
    matches: Pattern | None = Field(None, description="A regular expression that must be found in the cell.")
    not_matches: Pattern | None = Field(None, description="A regular expression that must not be found in it.")
    min: float | None = Field(None, description="The least number.")
    max: float | None = Field(None, description="The largest number.")
    min_characters: int | None = Field(None, ge=1, description="The shortest text.")
    max_characters: int | None = Field(None, ge=0, description="The longest text.")

    @model_validator(mode="after")
    def _a_rule(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields if name != "column"):
            rules = ", ".join(name for name in type(self).model_fields if name != "column")
            raise ValueError(f"says nothing about the column; add one of {rules}")
        for low, high in (("min", "max"), ("min_characters", "max_characters")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"`{low}` is above `{high}`, so no row could be left")
        return self
