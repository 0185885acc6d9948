"""Choose the settings of `data` that read the rows, by a known format or by a guess."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.data.row_formats import recognize_format
from tunesmith.data.split import split_named
from tunesmith.draft.columns import Column, describe_columns, leaf_name
from tunesmith.draft.conversations import add_conversation_settings
from tunesmith.draft.sample import Sample
from tunesmith.recipe.template import columns_in, parse_template

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
_REFERENCES = re.compile(r"references?|refs?|reference_answers|gold_answers")
_MIN_FILLED = 0.5
_MIN_GROUPS = 20


@dataclass(frozen=True, slots=True)
class Layout:
    """The settings of `data` for rows.

    Attributes:
        settings: the keys of `data`, such as `task`, `prompt` and `response`.
        reasons: why, by key.
        columns: the columns of the rows, by the names that the settings use.
        group: a column whose values several rows share.
        split: the column that holds the split of each row.
    """

    settings: dict[str, Any]
    reasons: dict[str, str]
    columns: Mapping[str, Column]
    group: Column | None
    split: Column | None

    @property
    def incomplete(self) -> tuple[str, ...]:
        """The columns that a template needs and that some rows leave empty."""
        needed = () if "messages" in self.settings else sorted(self.essential)
        return tuple(name for name in needed if not self.columns[name].is_filled)

    @property
    def used(self) -> set[str]:
        """The columns that the settings use."""
        others = {column.name for column in (self.group, self.split) if column}
        return _columns(self.settings) | others

    def with_references(self, columns: Sequence[str]) -> "Layout":
        """Return the layout with columns of references."""
        reason = "right answers for scoring; the best of them counts"
        settings = self.settings | {"references": list(columns)}
        return replace(self, settings=settings, reasons=self.reasons | {"references": reason})

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
    columns = sample.columns
    found = _recognize(columns)
    if found is None and (found := _recognize(in_text := describe_columns(sample.rows, reads_json=True))):
        columns = in_text
    settings, reasons = found or _guess(_usual(columns), where)
    if settings["task"] == "chat":
        settings, further = add_conversation_settings(columns, settings)
        reasons |= further
    references = _references(columns, settings["response"]) if "response" in settings else None
    used = _columns(settings) | set(references or ())
    left = [name for name in columns if not any(_is_part(name, other) or _is_part(other, name) for other in used)]
    key = next(key for key in ("messages", "prompt", "text") if key in settings)
    if left:
        reasons[key] = "; ".join(filter(None, [reasons.get(key), f"not used: {_listed(left)}"]))
    split = _split_column(columns)
    layout = Layout(settings, reasons, columns, None if split else _group_column(columns, used), split)
    return layout.with_references(references) if references else layout


def _usual(columns: Mapping[str, Column]) -> list[Column]:
    """Return the columns that most rows fill."""
    return [column for column in columns.values() if len(column.values) >= _MIN_FILLED * column.rows]


def _recognize(columns: Mapping[str, Column]) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return settings and reasons for rows of a known format, or with an object of one; None if there is none."""
    parents = {name[: at + 1] for name in columns for at, mark in enumerate(name) if mark == "."}
    for prefix in ["", *sorted(parents, key=len)]:
        paths = _names_in(prefix, columns)
        examples = {name: columns[path].example for name, path in paths.items()}
        filled = {name for name, path in paths.items() if columns[path].is_filled}
        known = recognize_format(examples, filled=filled)
        if known:
            settings = {"task": "chat", **{key: _located(value, paths) for key, value in known.settings.items()}}
            if _essential(settings) <= {column.name for column in _usual(columns)}:
                return settings, {"task": f"{known.name}: {known.note}" if known.note else known.name}
    return None


def _names_in(prefix: str, columns: Mapping[str, Column]) -> dict[str, str]:
    """Return {name: path} of the columns in an object.

    The first text of a list has the list's name, and the first of numbered columns has their name without a number.
    """
    paths = {}
    for path in columns:
        inner = path.removeprefix(prefix)
        if path.startswith(prefix) and ("." not in inner or inner.casefold().startswith(f"{leaf_name(path)}.")):
            paths[inner.partition(".")[0]] = path
    numbered = {name[:-1]: path for name, path in paths.items() if name.endswith("1") and f"{name[:-1]}2" in paths}
    return numbered | paths


def _located(value: str | list[str], paths: Mapping[str, str]) -> str | list[str]:
    """Return a setting of `recognize_format` with the paths in place of its names."""
    if isinstance(value, list):
        return [paths[name] for name in value]
    return paths.get(value) or re.sub(r"\{(.+?)(\??)\}", lambda match: f"{{{paths[match[1]]}{match[2]}}}", value)


def _references(columns: Mapping[str, Column], response: str) -> list[str] | None:
    """Return the columns of the references, if the rows have others than the answer."""
    answers = columns_in(response)
    if len(answers) != 1:
        return None
    [answer] = answers
    if (texts := answer.removesuffix(".0")) != answer:
        return [texts] if any(len(value) > 1 for value in columns[texts].values) else None
    stem = answer.rstrip("0123456789")
    numbered = [name for name in columns if name.rstrip("0123456789") == stem]
    if stem != answer and len(numbered) > 1:
        return numbered
    listed = [column for column in columns.values() if _REFERENCES.fullmatch(column.leaf) and column.holds_texts]
    others = [column.name for column in listed if column.values != [[text] for text in columns[answer].values]]
    return [answer, *others] if others else None


def _is_part(path: str, of: str) -> bool:
    return path == of or path.startswith(f"{of}.")


def _guess(columns: Sequence[Column], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return settings and reasons for rows of no known format, from the names and lengths of their columns."""
    if any(column.kind == "messages" for column in columns):
        raise _no_text(columns, where)
    texts = [
        column
        for column in columns
        if column.kind == "text" and not column.is_identifier and not column.name.endswith(".0")
    ]
    named = [column for column in columns if column.kind in ("text", "number") and column.leaf in _ANSWERS]
    answer = named[-1] if named else None
    prompts = [column for column in texts if column is not answer]
    if answer is not None and prompts:
        known = [column for column in prompts if column.leaf in _PROMPTS]
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
    used |= {settings["text"]} if "text" in settings else set()
    if optional:
        used |= {*settings.get("references", ()), *([settings["tools"]] if "tools" in settings else [])}
    pieces = [piece for key in ("system", "prompt", "response") for piece in parse_template(settings.get(key, ""))]
    return used | {piece.column for piece in pieces if piece.column and (optional or not piece.optional)}


def _essential(settings: Mapping[str, Any]) -> set[str]:
    return _columns(settings, optional=False)


def _split_column(columns: Mapping[str, Column]) -> Column | None:
    """Return the column with the split of each row."""
    for column in columns.values():
        splits = {split_named(str(value)) for value in column.values} if column.distinct <= _MAX_NAMES else set()
        if column.is_filled and None not in splits and {"train", "test"} <= splits:
            return column
    return None


def _group_column(columns: Mapping[str, Column], used: set[str]) -> Column | None:
    """Return a column of identifiers that rows share, such as a conversation or a database."""
    shared = [
        column
        for column in columns.values()
        if column.name not in used
        and column.is_filled
        and _GROUPS.search(column.leaf)
        and column.kind in ("text", "number")
        and _MIN_GROUPS <= column.distinct <= 0.8 * column.rows
    ]
    return min(shared, key=lambda column: column.distinct, default=None)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
