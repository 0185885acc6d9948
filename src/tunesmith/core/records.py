"""The records that stages exchange."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard


@dataclass(frozen=True, slots=True)
class Turn:
    """A message, a document, or one side of a pair. Only the tokens of trained turns enter the loss.

    `ids` are the token ids of a block of a document. The text alone does not give them, because a block may begin
    within a word. `keys` are what a message has besides role and content: `tool_calls`, `tool_call_id`, `name`,
    `reasoning_content`.
    """

    role: str
    text: str
    trained: bool
    ids: tuple[int, ...] = ()
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full_text(self) -> str:
        """The thought, the text and, as JSON, the tool calls: for people, and to compare rows."""
        calls = (json.dumps(call["function"], ensure_ascii=False) for call in self.keys.get("tool_calls", ()))
        return "\n".join(filter(None, (self.keys.get("reasoning_content"), self.text, *calls)))

    def to_json(self) -> dict[str, Any]:
        """Return the turn as JSON, without empty `ids` and `keys`."""
        turn = {"role": self.role, "text": self.text, "trained": self.trained}
        if self.ids:
            turn["ids"] = list(self.ids)
        return {**turn, "keys": dict(self.keys)} if self.keys else turn

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Turn":
        """Rebuild a turn from the result of `to_json`."""
        ids, keys = tuple(value.get("ids", ())), value.get("keys", {})
        return cls(value["role"], value["text"], value["trained"], ids, keys)


@dataclass(frozen=True, slots=True)
class Example:
    """A parsed row, or one block of it.

    Attributes:
        id: digest of the source columns that the recipe uses, and of the block's number.
        row: 1-based number of the row in its source.
        group: rows with the same group stay in one split and count as one unit in the verdict.
        references: the texts that an answer is compared with, if they are in columns of their own.
    """

    id: str
    row: int
    group: str
    turns: tuple[Turn, ...]
    references: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the example as it is stored in `prepare/examples/*.jsonl`, without empty `references`."""
        turns = [turn.to_json() for turn in self.turns]
        example = {"id": self.id, "row": self.row, "group": self.group, "turns": turns}
        return {**example, "references": list(self.references)} if self.references else example

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Example":
        """Rebuild an example from the result of `to_json`."""
        turns, references = tuple(map(Turn.from_json, value["turns"])), tuple(value.get("references", ()))
        return cls(value["id"], value["row"], value["group"], turns, references)


@dataclass(frozen=True, slots=True)
class Column:
    """A named column of values that every example of a run stores.

    Attributes:
        dtype: the type, as numpy names it.
        per: `token`: one value per token of `input_ids`. `sequence`: one value per sequence of the example. `ids`:
            token ids of any length that the model reads separately, such as an encoder's; the name ends in `_ids`.
    """

    name: str
    dtype: Literal["uint8", "int32", "int64", "float32", "float64"]
    per: Literal["token", "sequence", "ids"] = "token"


INPUT_IDS = Column("input_ids", "int32")
TRAINED = Column("trained", "uint8")
ENCODER_IDS = Column("source_ids", "int32", "ids")
"""The input of an encoder. `input_ids` are then the input of the decoder, beginning with its start token."""

SEQUENCE_LENGTHS = Column("sequence_lengths", "int32", "sequence")
"""The length of each sequence of an example with several, such as two answers to one prompt."""


LOSS_WEIGHT = Column("loss_weight", "float32", "sequence")
"""The weight of a sequence's tokens in the loss; examples without it have weight 1."""


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """A tokenized example: `input_ids` [length] and `trained` [length], true for tokens that enter the loss.

    It is one sequence, or several concatenated ones if `columns` has SEQUENCE_LENGTHS.
    """

    example_id: str
    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    columns: Mapping[Column, tuple[float, ...]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """The number of tokens that the model reads, in its encoder and its decoder."""
        return len(self.input_ids) + sum(len(ids) for column, ids in self.columns.items() if column.per == "ids")

    @property
    def prompt_ids(self) -> tuple[float, ...]:
        """The token ids that contain the prompt: those of the encoder, if there is one, or else `input_ids`."""
        return next((ids for column, ids in self.columns.items() if column.per == "ids"), self.input_ids)


@dataclass(frozen=True, slots=True)
class StepReport:
    """The result of one optimizer step.

    Attributes:
        loss: nats per trained token, or the unit of another objective.
        loss_scale: the factor of the loss in fp16.
        update_seconds: time to clip the gradients and update the weights; None on a GPU, which runs asynchronously.
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
