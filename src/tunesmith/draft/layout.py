"""Choose the settings of `data` that read the rows, by a known format or by a guess."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.data.row_formats import recognize_format
from tunesmith.data.split import split_named
from tunesmith.draft.sample import Column, Sample
from tunesmith.recipe.template import parse_template

_ANSWERS = (
    "answer", "answers", "output", "response", "completion", "target", "label", "labels", "summary", "ref", "reference",
    "sql", "reply", "translation", "highlights", "class", "category", "sentiment", "intent", "code", "solution",
)  # fmt: skip
_PROMPTS = (
    "question", "prompt", "instruction", "query", "input", "text", "sentence", "source", "document", "article",
    "dialogue", "dialog", "review", "content", "body", "mr", "title", "message", "context",
)  # fmt: skip
_MAX_NAMES = 5  # different words in a column of splits
_GROUPS = re.compile(
    r"(^|_)(id|uuid|key|hash|template|group|session|thread|author|user|customer|conversation|db|database|document)(_|$)"
)
_MIN_FILLED = 0.5
_MIN_GROUPS = 20


@dataclass(frozen=True, slots=True)
class Layout:
    """The settings of `data` for rows.

    Attributes:
        settings: the keys of `data`, such as `task`, `prompt` and `response`.
        reasons: why, by key.
        incomplete: columns that a template needs and that some rows leave empty.
        group: a column whose values several rows share.
        split: the column that holds the split of each row.
    """

    settings: dict[str, Any]
    reasons: dict[str, str]
    incomplete: tuple[str, ...]
    group: Column | None
    split: Column | None

    @property
    def columns(self) -> set[str]:
        """The columns that the settings use."""
        others = {column.name for column in (self.group, self.split) if column}
        return _columns(self.settings) | others

    @property
    def essential(self) -> set[str]:
        """The columns that every row needs."""
        return _essential(self.settings)


def choose_layout(sample: Sample, where: str) -> Layout:
    """Return the settings that read the rows of a sample.

    Args:
        where: the name of the source, for errors.

    Raises:
        DataError: no column holds text that a model could learn from.
    """
    all_columns = sample.columns
    usual = [column for column in all_columns.values() if len(column.values) >= _MIN_FILLED * column.rows]
    examples = {name: column.example for name, column in all_columns.items()}
    found = recognize_format(examples, filled={column.name for column in usual if column.is_filled})
    if found and _essential(found.settings) <= {column.name for column in usual}:
        settings: dict[str, Any] = {"task": "chat", **found.settings}
        reasons = {"task": f"{found.name}: {found.note}" if found.note else found.name}
    else:
        settings, reasons = _guess(usual, where)
    used = _columns(settings)
    left = [name for name in all_columns if name not in used]
    key = next(key for key in ("messages", "prompt", "text") if key in settings)
    if left:
        reasons[key] = "; ".join(filter(None, [reasons.get(key), f"not used: {_listed(left)}"]))
    split = _split_column(sample)
    return Layout(
        settings,
        reasons,
        tuple(
            name
            for name in sorted(_essential(settings))
            if "messages" not in settings and not all_columns[name].is_filled
        ),
        None if split else _group_column(sample, used),
        split,
    )


def _guess(columns: Sequence[Column], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return settings and reasons for rows of no known format, from the names and lengths of their columns."""
    if any(column.kind == "messages" for column in columns):
        raise _no_text(columns, where)
    texts = [column for column in columns if column.kind == "text" and not column.is_identifier]
    named = [column for column in columns if column.kind in ("text", "number") and column.name.casefold() in _ANSWERS]
    answer = named[-1] if named else None
    prompts = [column for column in texts if column is not answer]
    if answer is not None and prompts:
        known = [column for column in prompts if column.name.casefold() in _PROMPTS]
        prompt = max(known or prompts, key=lambda column: column.mean_length)
        reason = f"a guess: `{answer.name}` is named like an answer"
        return _pair(prompt, answer, reason)
    if len(texts) == 2:
        reason = f"a guess: of two columns of text, `{texts[1].name}` answers `{texts[0].name}`; swap them if not"
        return _pair(texts[0], texts[1], reason)
    if texts:
        text = max(texts, key=lambda column: column.mean_length)
        others = "a guess: the column with the longest texts; or a template of several, in braces"
        reason = "the only column of text" if len(texts) == 1 else others
        return {"task": "text", "text": text.name}, {"task": "documents to write more of", "text": reason}
    raise _no_text(columns, where)


def _pair(prompt: Column, answer: Column, reason: str) -> tuple[dict[str, Any], dict[str, str]]:
    settings = {"task": "chat", "prompt": f"{{{prompt.name}}}", "response": f"{{{answer.name}}}"}
    return settings, {"task": reason, "prompt": "add an instruction if the rows hold none"}


def _no_text(columns: Iterable[Column], where: str) -> DataError:
    """Return the error for rows that nothing can be learned from."""
    nested = [column.name for column in columns if column.kind in ("nested", "messages")]
    named = ", ".join(f"`{column.name}` ({_described(column)})" for column in columns) or "all columns are mostly empty"
    hint = "give each row a prompt and an answer, one list of messages that ends with an answer, or a text"
    if nested:
        hint += f"; no setting reads {_listed(nested)} as it is"
    problem = f"no columns are recognized that a model could learn from: {named}"
    return DataError(problem, where=where, hint=hint, code="no-format")


def _described(column: Column) -> str:
    if column.kind == "nested":
        return f"a {type(column.example).__name__}"
    return "identifiers" if column.is_identifier else column.kind if column.kind == "messages" else f"{column.kind}s"


def _columns(settings: Mapping[str, Any], *, optional: bool = True) -> set[str]:
    """Return the columns that settings of `data` name; those that may be empty only if `optional`."""
    messages = settings.get("messages", ())
    used = {messages} if isinstance(messages, str) else set(messages)
    used |= {settings[key] for key in ("text", "tools") if key in settings}
    pieces = [piece for key in ("system", "prompt", "response") for piece in parse_template(settings.get(key, ""))]
    return used | {piece.column for piece in pieces if piece.column and (optional or not piece.optional)}


def _essential(settings: Mapping[str, Any]) -> set[str]:
    return _columns(settings, optional=False)


def _split_column(sample: Sample) -> Column | None:
    """Return the column with the split of each row."""
    for column in sample.columns.values():
        splits = {split_named(str(value)) for value in column.values} if column.distinct <= _MAX_NAMES else set()
        if column.is_filled and None not in splits and {"train", "test"} <= splits:
            return column
    return None


def _group_column(sample: Sample, used: set[str]) -> Column | None:
    """Return a column of identifiers that rows share, such as a conversation or a database."""
    shared = [
        column
        for column in sample.columns.values()
        if column.name not in used
        and column.is_filled
        and _GROUPS.search(column.name.lower())
        and column.kind in ("text", "number")
        and _MIN_GROUPS <= column.distinct <= 0.8 * column.rows
    ]
    return min(shared, key=lambda column: column.distinct, default=None)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
