"""Answers of an endpoint to test rows; finished answers survive an interruption."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of, translate_enospc
from tunesmith.core.jsonl import json_line
from tunesmith.core.progress import Progress
from tunesmith.core.records import Example
from tunesmith.evaluate.model_outputs import load_finished
from tunesmith.inference.endpoint import Endpoint
from tunesmith.recipe.schema import Recipe, TextData

_REQUESTS = 8  # at the same time


def ask_endpoint(endpoint: Endpoint, recipe: Recipe, examples: Sequence[Example], folder: Path) -> list[dict[str, Any]]:
    """Return the endpoint's answers to rows in order, as `predict` gives them, but without ids.

    The rows are sent as the conversations of the recipe; a prompt without turns is one turn of the user. Top-k, min-p
    and a repetition penalty are sent if the recipe sets them, although not every server accepts them.

    Args:
        folder: the folder of `generations.jsonl`, to which each answer is appended at once.

    Raises:
        RecipeError: the server cannot be reached or refuses the request, or the recipe continues documents
            or asks for several samples.
    """
    if isinstance(recipe.data, TextData):
        message = "an endpoint answers conversations, but the run continues documents"
        raise RecipeError(message, where=str(endpoint), code="not-comparable")
    if recipe.evaluate.samples > 1:
        message = "an endpoint gives one answer to a row, but the run has several samples"
        raise RecipeError(message, where=str(endpoint), code="not-comparable")
    options = _options(recipe)
    messages = {one.id: _messages(one) for one in examples}
    key = digest_of([str(endpoint), options, list(messages.values())])
    answers = {line["id"]: line for line in load_finished(folder, key)}
    progress = Progress(f"answers of {endpoint}", total=len(examples), unit="rows", start=len(answers))
    path, waiting = folder / "generations.jsonl", [example for example in examples if example.id not in answers]
    with translate_enospc(path), path.open("a", encoding="utf-8") as log, ThreadPoolExecutor(_REQUESTS) as pool:
        try:
            futures = {pool.submit(endpoint.ask, messages[one.id], **options): one for one in waiting}
            for future in as_completed(futures):
                interrupt.check()
                answer, example = future.result(), futures[future]
                line = {
                    "id": example.id,
                    "row": example.row,
                    "prompt": "\n\n".join(turn["content"] for turn in messages[example.id]),
                    "prediction": answer.text,
                    "reference": list(example.references) or example.turns[-1].text,
                    "stopped": answer.stopped,
                    "error": answer.error,
                }
                answers[example.id] = line
                log.write(json_line(line))
                log.flush()
                progress.update(len(answers))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    progress.close()
    return [answers[example.id] for example in examples]


def _messages(example: Example) -> list[dict[str, str]]:
    roles = {"system", "user", "assistant", "tool"}
    turns = example.turns[:-1]
    return [{"role": turn.role if turn.role in roles else "user", "content": turn.text} for turn in turns]


def _options(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a request that the recipe's `evaluate` asks for."""
    settings = recipe.evaluate
    sampling = settings.sampling.model_dump(exclude_defaults=True)
    stop = {"stop": list(settings.stop)} if settings.stop else {}
    return {"max_tokens": settings.max_new_tokens, "temperature": 0.0, **sampling, **stop}
