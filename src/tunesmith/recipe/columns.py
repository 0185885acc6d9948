"""The source columns that a recipe's `data` section uses, told apart by what they are used for."""

from tunesmith.recipe.schema import ChatData, CompletionData, Data, Seq2SeqData, TextData, columns_in


def asked_columns(data: Data) -> tuple[str, ...]:
    """Return the columns of the prompt and the system turn, or of a document; sorted, each once."""
    if isinstance(data, TextData):
        return _in_order(columns_in(data.text) or (data.text,))
    system = data.system if isinstance(data, ChatData) else None
    return _in_order([column for template in (system, data.prompt) if template for column in columns_in(template)])


def answer_columns(data: Data) -> tuple[str, ...]:
    """Return the columns of the response; sorted, each once."""
    if isinstance(data, CompletionData | Seq2SeqData | ChatData) and data.response:
        return _in_order(columns_in(data.response))
    return ()


def _in_order(columns: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(columns)))
