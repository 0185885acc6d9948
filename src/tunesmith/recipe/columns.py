"""The source columns that a recipe's `data` section uses, by their use."""

from collections.abc import Iterable

from tunesmith.recipe.schema import ChatData, CompletionData, Data, Seq2SeqData, TextData
from tunesmith.recipe.template import columns_in, names_in_double_braces, parse_template


def prompt_columns(data: Data) -> tuple[str, ...]:
    """Return the columns of the prompt and the system turn, or of a document; sorted, without repetition."""
    if isinstance(data, TextData):
        return _sorted_unique(columns_in(data.text) or (data.text,))
    return _sorted_unique([column for template in _prompt_templates(data) for column in columns_in(template)])


def response_columns(data: Data) -> tuple[str, ...]:
    """Return the columns of the response; sorted, without repetition."""
    if isinstance(data, CompletionData | Seq2SeqData | ChatData) and data.response:
        return _sorted_unique(columns_in(data.response))
    return ()


def message_columns(data: Data) -> tuple[str, ...]:
    """Return the columns of messages, in the order in which they are read."""
    messages = data.messages if isinstance(data, ChatData) else None
    return () if messages is None else (messages,) if isinstance(messages, str) else messages


def reference_columns(data: Data) -> tuple[str, ...]:
    """Return the columns of the references, which may be empty and which a source may lack."""
    names = () if isinstance(data, TextData) else data.references or ()
    return (names,) if isinstance(names, str) else names


def tools_column(data: Data) -> str | None:
    """Return the column of the rows' tools, if the recipe names one."""
    return data.tools if isinstance(data, ChatData) and isinstance(data.tools, str) else None


def optional_columns(data: Data) -> frozenset[str]:
    """Return the columns that may be empty: that of the tools, and those that every template writes as `{name?}`."""
    pieces = [piece for template in _templates(data) for piece in parse_template(template)]
    optional = frozenset(piece.column for piece in pieces if piece.column is not None and piece.optional)
    required = {piece.column for piece in pieces if not piece.optional}
    return optional.union([column] if (column := tools_column(data)) else []) - required


def required_columns(data: Data) -> tuple[str, ...]:
    """Return the columns that every usable row has: of templates, messages, filters and the split."""
    columns = [*prompt_columns(data), *response_columns(data), *(rule.column for rule in data.filters)]
    columns += [*message_columns(data), *(name for name in (data.split.by, data.split.column) if name is not None)]
    optional = optional_columns(data)
    return tuple(column for column in dict.fromkeys(columns) if column not in optional)


def double_brace_names(data: Data) -> tuple[str, ...]:
    """Return the names in double braces, which are literal text here (Jinja's syntax); sorted, without repetition."""
    return _sorted_unique([name for template in _templates(data) for name in names_in_double_braces(template)])


def _prompt_templates(data: Data) -> list[str]:
    """Return the templates that a prompt is made from."""
    if isinstance(data, TextData):
        return [data.text] if columns_in(data.text) else []
    system = data.system if isinstance(data, ChatData) else None
    return [template for template in (system, data.prompt) if template]


def _templates(data: Data) -> list[str]:
    response = None if isinstance(data, TextData) else data.response
    return [*_prompt_templates(data), *([response] if response else [])]


def _sorted_unique(columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(columns)))
