"""Ollama's `Modelfile`: the prompt, the stop strings and the decoding that a model was judged with.

Without TEMPLATE, Ollama looks for a template of its own that resembles the model's, or sends the bare question. Its
defaults also sample, and penalize repetition. Format: https://docs.ollama.com/modelfile.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.architecture.base_model import language_config
from tunesmith.architecture.linear_layers import first_number
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_text
from tunesmith.export.go_template import go_text, role_texts
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.recorded import recorded_recipe
from tunesmith.recipe.data_record import UNKNOWN_SOURCE
from tunesmith.recipe.schema import ChatData, CompletionData, Data, Seq2SeqData
from tunesmith.recipe.template import columns_in, parse_template
from tunesmith.tasks import task_for
from tunesmith.tasks.base import fill_template
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.recorded_data import recorded_data
from tunesmith.tasks.tokenizer import TokenizerAdapter

MODELFILE = "Modelfile"
_MAX_CONTEXT = 8192  # Ollama reserves memory for all of it
# Ollama's parameter, the recipe's key, and the value that changes nothing: Ollama's own defaults are others.
_SAMPLING = (
    ("temperature", "temperature", 0), ("top_k", "top_k", 0), ("top_p", "top_p", 1), ("min_p", "min_p", 0),
    ("repeat_penalty", "repetition_penalty", 1),
)  # fmt: skip
_HEAD = (
    "# Written by tunesmith and not tried in Ollama. To compare a running Ollama with the model:",
    "#   tunesmith prove http://127.0.0.1:11434/v1 MODEL",
)


def write_modelfile(folder: Path, model: ModelFolder, *, file: str, adapter: str | None = None) -> Path:
    """Write a Modelfile to a folder and return its path.

    Args:
        file: the `.gguf` file of the model in the folder, or of the base of `adapter`.
        adapter: the `.gguf` file of an adapter in the folder.

    Raises:
        RecipeError: the chat template, or a text of the recipe, cannot be written in a Modelfile.
    """
    write_text(folder / MODELFILE, modelfile(model, file=file, adapter=adapter))
    return folder / MODELFILE


def modelfile(model: ModelFolder, *, file: str, adapter: str | None = None) -> str:
    """Return the text of a Modelfile; arguments and errors are those of `write_modelfile`."""
    tokenizer = load_tokenizer(model)
    data = recorded_data(model)
    if data is None and tokenizer.has_chat_template:
        data = ChatData(source=UNKNOWN_SOURCE, task="chat", messages="messages")
    lines = [*_HEAD, f"FROM {quoted(f'./{file}')}"]
    if adapter is not None:
        lines.append(f"ADAPTER {quoted(f'./{adapter}')}")
    lines += _prompt_lines(data, tokenizer)
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(model, data, tokenizer)]
    return "\n".join(lines) + "\n"


def _prompt_lines(data: Data | None, tokenizer: TokenizerAdapter) -> Iterator[str]:
    """Yield TEMPLATE and SYSTEM, with which Ollama sends the prompt of training."""
    if isinstance(data, Seq2SeqData):
        raise RecipeError("Ollama runs no encoder-decoder models", where=MODELFILE, code="not-in-modelfile")
    if isinstance(data, ChatData):
        texts = role_texts(data, tokenizer)
        if "system" not in texts.before:
            yield "# The chat template has no system turn: Ollama leaves one out."
        if texts.strips:
            yield "# The chat template strips blanks around a turn; Ollama does not."
        yield f"TEMPLATE {quoted(texts.to_go())}"
        if data.system and not columns_in(data.system):
            system = fill_template(data.system, {})
            yield f"SYSTEM {quoted(system.strip() if texts.strips else system)}"
        elif data.system:
            yield "# The recipe's system turn has columns: send it with every conversation, as the model card shows."
    elif isinstance(data, CompletionData) and len(set(columns_in(data.prompt))) == 1:
        pieces = parse_template(data.prompt)
        template = "".join(go_text(text) + ("{{ .Prompt }}" if column else "") for text, column, _ in pieces)
        yield f"TEMPLATE {quoted(template)}"
    else:
        yield 'TEMPLATE "{{ .Prompt }}"'


def _parameters(model: ModelFolder, data: Data | None, tokenizer: TokenizerAdapter) -> Iterator[tuple[str, str]]:
    """Yield the parameters of the evaluation: stop strings, decoding and limits."""
    evaluate: Mapping[str, Any] = recorded_recipe(model).get("evaluate") or {}
    stop_ids = task_for(data, tokenizer).stop_ids if data else ()
    stops = [tokenizer.decode([i]) for i in stop_ids] + list(evaluate.get("stop") or ())
    for stop in dict.fromkeys(stops):
        yield "stop", quoted(stop)
    sampling = evaluate.get("sampling") or {}
    for name, key, neutral in _SAMPLING:
        value = sampling.get(key)
        yield name, f"{neutral if value is None else value:g}"
    if limit := evaluate.get("max_new_tokens"):
        yield "num_predict", str(limit)
    positions = first_number(language_config(model.root.path), "max_position_embeddings", "n_positions")
    yield "num_ctx", str(min(positions or _MAX_CONTEXT, _MAX_CONTEXT))


def quoted(text: str) -> str:
    """Return a value of a Modelfile, in quotes.

    Raises:
        RecipeError: Ollama's parser would change the text: it drops characters that cannot be printed, and ends a
            value at the first line that ends with quotes.
    """
    hidden = next((c for c in text if not c.isprintable() and c not in "\n\t"), None)
    marks = '"""' if "\n" in text or text[:1] == '"' or text[-1:] == '"' else '"'
    lines = f"{marks}{text}".split("\n")[:-1]
    if hidden is not None or any(line.rstrip().endswith(marks) and line != marks for line in lines):
        problem = f"U+{ord(hidden):04X}, which Ollama drops" if hidden is not None else "a line that ends with quotes"
        message = f"a text of the recipe cannot be written in a Modelfile: it has {problem}"
        hint = "serve the model with llama.cpp or `tunesmith serve`"
        raise RecipeError(message, where=repr(text[:60]), hint=hint, code="not-in-modelfile")
    return f"{marks}{text}{marks}"
