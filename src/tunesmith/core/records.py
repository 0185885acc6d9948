"""The records that cross a stage boundary. All frozen, all JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, document or side of a pair. Only the tokens of trained turns enter the loss.

    `ids` are the tokens of a block of a document, which its text alone would not give: it may begin within a word.
    """

    role: str
    text: str
    trained: bool
    ids: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the turn without what it does not have."""
        turn = {"role": self.role, "text": self.text, "trained": self.trained}
        return {**turn, "ids": list(self.ids)} if self.ids else turn

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Turn":
        """Rebuild a turn from what `to_json` gave."""
        return cls(value["role"], value["text"], value["trained"], tuple(value.get("ids", ())))


@dataclass(frozen=True, slots=True)
class Example:
    """One parsed row, or one block of it: `sources` -> tasks.parse -> Example.

    `id` is a digest of the source columns that the recipe uses, and of a block's place in its document; `group` keeps
    rows together when splitting and when judging; `row` is the 1-based number of the row in its source.
    """

    id: str
    row: int
    group: str
    turns: tuple[Turn, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the example as it is stored in `prepare/examples/*.jsonl`."""
        turns = [turn.to_json() for turn in self.turns]
        return {"id": self.id, "row": self.row, "group": self.group, "turns": turns}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Example":
        """Rebuild an example from what `to_json` gave."""
        return cls(value["id"], value["row"], value["group"], tuple(map(Turn.from_json, value["turns"])))


@dataclass(frozen=True, slots=True)
class Column:
    """Values that every example of a run stores under a name.

    Attributes:
        dtype: numpy's name of the type.
        per: `token` is a value for each of `input_ids`, `sequence` a value for each sequence of the example, and `ids`
            are token ids of any number, whose name ends in `_ids`, which the model reads apart from `input_ids`.
    """

    name: str
    dtype: Literal["uint8", "int32", "int64", "float32", "float64"]
    per: Literal["token", "sequence", "ids"] = "token"


INPUT_IDS = Column("input_ids", "int32")
TRAINED = Column("trained", "uint8")
ENCODER_IDS = Column("source_ids", "int32", "ids")
"""What an encoder reads; `input_ids` are then the decoder's, its start token first."""

SEQUENCE_LENGTHS = Column("sequence_lengths", "int32", "sequence")
"""Tokens of each sequence, for examples of several that belong together, such as two answers to one prompt."""


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One rendered example: `input_ids` [length] and `trained` [length], true where a token is learned.

    An example is one sequence, unless SEQUENCE_LENGTHS is among its `columns`: then several, one behind the other.
    """

    example_id: str
    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    columns: Mapping[Column, tuple[float, ...]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """How many tokens a model reads."""
        return len(self.input_ids) + sum(len(ids) for column, ids in self.columns.items() if column.per == "ids")

    @property
    def prompt_ids(self) -> tuple[float, ...]:
        """What a prompt becomes: what is read apart from `input_ids`, by an encoder, or else `input_ids`."""
        return next((ids for column, ids in self.columns.items() if column.per == "ids"), self.input_ids)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did.

    Attributes:
        loss: nats per trained token, or what another objective makes of them.
        loss_scale: what it was multiplied by in fp16.
        update_seconds: of this process, to clip gradients and move weights; None on a GPU, which is not waited for.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    trained_tokens: int
    loss_scale: float = 1.0
    update_seconds: float | None = field(default=None, compare=False)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number; true and false are not."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
