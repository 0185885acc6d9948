"""The source columns that a recipe's `data` section uses, by their use."""

from collections.abc import Iterable

from tunesmith.recipe.schema import ChatData, CompletionData, Data, Seq2SeqData, TextData
from tunesmith.recipe.template import columns_in, names_in_double_braces, optional_columns_in, parse_template


def prompt_columns(data: Data) -> tuple[str, ...]:
    """Return the columns of the prompt and the system turn, or of a document; sorted, each once."""
    if isinstance(data, TextData):
        return _in_order(columns_in(data.text) or (data.text,))
    return _in_order([column for template in _asking(data) for column in columns_in(template)])


def response_columns(data: Data) -> tuple[str, ...]:
    """Return the columns of the response; sorted, each once."""
    if isinstance(data, CompletionData | Seq2SeqData | ChatData) and data.response:
        return _in_order(columns_in(data.response))
    return ()


def optional_columns(data: Data) -> frozenset[str]:
    """Return the columns that may be empty: every template that names them has `{name?}`."""
    templates = _templates(data)
    optional = frozenset().union(*map(optional_columns_in, templates))
    needed = {piece.column for template in templates for piece in parse_template(template) if not piece.optional}
    return optional - needed


def required_columns(data: Data) -> tuple[str, ...]:
    """Return the columns without which no row can be used: of templates, messages, filters and the split."""
    named = [*prompt_columns(data), *response_columns(data), *(rule.column for rule in data.filters)]
    messages = data.messages if isinstance(data, ChatData) else None
    named += [column for column in (messages, data.split.by, data.split.column) if column is not None]
    optional = optional_columns(data)
    return tuple(column for column in dict.fromkeys(named) if column not in optional)


def double_brace_names(data: Data) -> tuple[str, ...]:
    """Return the names in double braces in the templates, which are text; sorted, each once."""
    return _in_order([name for template in _templates(data) for name in names_in_double_braces(template)])


def _asking(data: Data) -> list[str]:
    """Return the templates of what is asked."""
    if isinstance(data, TextData):
        return [data.text] if columns_in(data.text) else []
    system = data.system if isinstance(data, ChatData) else None
    return [template for template in (system, data.prompt) if template]


def _templates(data: Data) -> list[str]:
    response = None if isinstance(data, TextData) else data.response
    return [*_asking(data), *([response] if response else [])]


def _in_order(columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(columns)))
