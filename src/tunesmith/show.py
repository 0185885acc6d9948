"""Rows as the model sees them: every token, and which of them are learned; in a terminal, as HTML, as JSON.

Of a run, the rows that `prepare` wrote; of a recipe, the first rows of its source that are used.
"""

import difflib
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from safetensors import SafetensorError

from tunesmith.core.errors import DamagedFile, DataError, RecipeError
from tunesmith.core.files import read_jsonl, write_text
from tunesmith.core.records import Example, Tokens
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.data.examine import examine, token_view
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.report.sections import token_rows
from tunesmith.report.wording import count, visible
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.markup import codec_of
from tunesmith.tasks.tokenizer import Codec

Sample = dict[str, Any]

_LEGEND = "learned tokens stand in \u27e6 \u27e7, \u00a6 parts tokens, \u23ce is a line break"
_RESET, _TRAINED, _SPECIAL, _EVERY_OTHER = "\x1b[0m", "1;32", "2", "4"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Rows as the model sees them</title>
<style>{{ style }}</style>
</head>
<body>
<header class="top"><p class="run"><strong>Rows as the model sees them</strong></p></header>
<main><section>
<p class="lead">Every box is one token. Only the <span class="k t">marked</span> ones are learned; the others are read.
<span class="k s">Framed</span> ones are control tokens.</p>
{% for row in rows %}
<details class="sample" open><summary>{{ row.title }} <span>{{ row.counts }}</span></summary>
<p class="tokens" dir="ltr">{% for token in row.tokens -%}
<span class="k{{ " t" if token.trained }}{{ " s" if token.special }}" title="{{ token.id }}">{{ token.text }}</span>
{%- endfor %}{% if row.total > row.tokens|length %} <em>&hellip; {{ row.total - row.tokens|length }} more tokens</em>
{%- endif %}</p></details>
{% endfor %}
</section></main>
</body>
</html>
"""


def view(
    recipe_or_run: Path | str, overrides: Sequence[str] = (), *, rows: int = 3, split: str = "train"
) -> list[Sample]:
    """Return the first rows of a split as {split, row, where, id, status, tokens, prompt_tokens}.

    `tokens` are {text, id, trained, special}; `prompt_tokens` is how many of them a model is given to answer. A row
    that `data.train_rows` will leave out may be among those of a recipe, because that is known only after reading all.

    Raises:
        RecipeError: the recipe is wrong, there is no such split, or overrides would have no effect.
        DataError: the data cannot be read or used, or the split has no rows.
        DamagedFile: what `prepare` wrote is damaged.
    """
    if split not in SPLITS:
        near = difflib.get_close_matches(split, SPLITS, 1)
        raise RecipeError(
            f"there is no split `{split}`", hint=f"did you mean `{near[0]}`?" if near else ", ".join(SPLITS)
        )
    if rows < 1:
        raise RecipeError(f"{rows} rows cannot be shown", hint="give --rows 1 or more")
    path = Path(recipe_or_run)
    run = RunDir(path)
    if not run.resolved_recipe.exists():
        samples = _examined(load_recipe(path, overrides), path.parent, split)
    elif run.manifest("prepare") is None:
        samples = _examined(load_recipe(run.resolved_recipe, overrides), run.origin, split)
    elif overrides:
        raise RecipeError(
            "its rows are prepared, so changes have no effect", where=str(run), hint="show the recipe instead"
        )
    else:
        samples = _prepared(run, split)
    found = list(islice(samples, rows))
    if not found:
        raise DataError(f"there are no rows for `{split}`", where=str(path), hint="data.split says which rows go where")
    return found


def _examined(recipe: Recipe, folder: Path, split: str) -> Iterator[Sample]:
    """Yield the rows of a split from the source, reading no further than asked."""
    codec, task = _reader(recipe, resolve(recipe.model.base, relative_to=folder))
    for found in examine(recipe, task, folder=folder):
        if found.entry.split == split and found.example is not None and found.tokens is not None:
            entry = found.entry
            yield _sample(split, entry.where, entry.status, found.example, found.tokens, codec, task)


def _prepared(run: RunDir, split: str) -> Iterator[Sample]:
    """Yield the rows of a split as they lie in `prepare/`: the very tokens that training reads."""
    from tunesmith.data.batches import TokenSet

    recipe = load_recipe(run.resolved_recipe)
    model = resolve(recipe.model.base, relative_to=run.origin)
    if model.root.tokenizer_digest() != (run.manifest("prepare") or {})["inputs"]["tokenizer"]:
        raise RecipeError(
            f"the tokenizer of `{recipe.model.base}` is not the one the rows were prepared with", where=str(run)
        )
    codec, task = _reader(recipe, model)
    try:
        tokens = TokenSet(run.tokens(split))
    except (OSError, SafetensorError) as error:
        raise DamagedFile(f"cannot be read ({error})", where=str(run.tokens(split))) from error
    # Examples and token file hold the rows of one split in the order of the ledger.
    used = (line for line in read_jsonl(run.ledger) if line["split"] == split and line["status"] in ("kept", "cut"))
    for place, line in enumerate(read_jsonl(run.examples(split))):
        example, entry = Example.from_json(line), next(used, None)
        if entry is None or entry["id"] != example.id or place >= len(tokens):
            raise DamagedFile("the ledger, the examples and the tokens do not match", where=str(run.stage("prepare")))
        batch, length = tokens.batch([place], codec.pad_id), int(tokens.lengths[place])
        stored = Tokens(
            example.id, tuple(batch.input_ids[0, :length].tolist()), tuple(batch.trained[0, :length].tolist())
        )
        yield _sample(split, entry["where"], entry["status"], example, stored, codec, task)


def _reader(recipe: Recipe, model: ModelFolder) -> tuple[Codec, Task]:
    codec = codec_of(model, recipe.model.chat_markup)
    return codec, task_for(recipe.data, codec)


def _sample(split: str, where: str, status: str, example: Example, tokens: Tokens, codec: Codec, task: Task) -> Sample:
    return {
        "split": split,
        "row": example.row,
        "where": where,
        "id": example.id,
        "status": status,
        "tokens": token_view(tokens, codec),
        "prompt_tokens": min(len(task.prompt(example.turns)), len(tokens.input_ids)),
    }


def as_text(samples: Sequence[Sample], *, colour: bool) -> str:
    """Return rows for a terminal, or for a pipe, where marks stand in place of colours."""
    blocks = [] if colour else [_LEGEND]
    for sample in samples:
        title, counts = _header(sample)
        head = f"{title}  {counts}"
        body = _coloured(sample["tokens"]) if colour else _marked(sample["tokens"])
        blocks.append(f"\x1b[1m{head}{_RESET}\n{body}" if colour else f"{head}\n{body}")
    return "\n\n".join(blocks)


def as_html(samples: Sequence[Sample], path: Path) -> None:
    """Write rows as one HTML file in the looks of the report, which asks the network for nothing and runs nothing."""
    rows = []
    for sample in samples:
        title, counts = _header(sample)
        rows += [{**row, "title": title, "counts": counts} for row in token_rows([sample])]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    style = (resources.files("tunesmith.report") / "report.css").read_text(encoding="utf-8")
    write_text(path, environment.from_string(_PAGE).render(rows=rows, style=Markup(style)) + "\n")


def _header(sample: Sample) -> tuple[str, str]:
    """Return which row it is, and its counts."""
    trained = sum(token["trained"] for token in sample["tokens"])
    counts = f"{count(len(sample['tokens']))} tokens, {count(trained)} learned, prompt {count(sample['prompt_tokens'])}"
    title = visible(f"{sample['split']} row {sample['row']} ({sample['where']})")
    return title, counts + (", cut" if sample["status"] == "cut" else "")


def _marked(tokens: Sequence[dict[str, Any]]) -> str:
    parts: list[str] = []
    learned = False
    for token in tokens:
        if token["trained"] != learned:
            parts.append("\u27e6" if token["trained"] else "\u27e7")
        elif parts and not parts[-1].endswith("\n"):
            parts.append("\u00a6")
        learned = token["trained"]
        parts.append(_drawn(token["text"]))
    return "".join(parts).rstrip("\n") + ("\u27e7" if learned else "")


def _coloured(tokens: Sequence[dict[str, Any]]) -> str:
    parts = []
    for place, token in enumerate(tokens):
        # Underlining every other token shows where one ends on a dark and on a light background.
        codes = [_TRAINED] * token["trained"] + [_SPECIAL] * token["special"] + [_EVERY_OTHER] * (place % 2)
        text = _drawn(token["text"])
        parts.append(f"\x1b[{';'.join(codes)}m{text}{_RESET}" if codes else text)
    return "".join(parts)


def _drawn(text: str) -> str:
    """Return text in which nothing is invisible and nothing is obeyed by a terminal."""
    return visible(text).replace("\t", "\u2192\t").replace("\n", "\u23ce\n")
