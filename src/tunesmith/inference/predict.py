"""Generate the answers of one model, one JSON line per row."""

from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.inference.generate import generate
from tunesmith.inference.prompts import Prompts
from tunesmith.model.load import max_positions
from tunesmith.tasks.base import Task
from tunesmith.tasks.references import scored_reference


def predict(
    model: Any,
    prompts: Prompts,
    task: Task,
    answers: Sequence[int],
    *,
    continue_on_oom: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the answers with some numbers, as `Prompts` numbers them, in the order in which they finish.

    A line is {id, row, prompt, prediction, reference, new_tokens, ids, stopped, error}, and the number of the `sample`,
    from 1, if rows have several. `reference` is a text, or a list if the row has several. A prompt that does not fit in
    the model's positions has an `error` and no answer. The model is left in eval mode.

    Args:
        continue_on_oom: if even a single prompt does not fit in memory, give it an `error` instead of raising.

    Raises:
        RecipeError: beam search is combined with sampling or stop strings.
        DoesNotFit: even a single prompt does not fit in memory.
    """
    samples, stop_strings = prompts.samples, prompts.stop_strings

    def line(number: int, ids: Sequence[int], *, stopped: bool, error: str | None) -> dict[str, Any]:
        row, sample = divmod(number, samples)
        example = prompts.examples[row]
        text = "" if error else task.decode_answer(ids)
        return {
            "id": example.id,
            "row": example.row,
            **({"sample": sample + 1} if samples > 1 else {}),
            "prompt": prompts.texts[row],
            "prediction": stop_strings.cut(text) if stop_strings else text,
            "reference": scored_reference(task, example),
            "new_tokens": len(ids),
            "ids": list(ids),
            "stopped": stopped,
            "error": error,
        }

    positions = max_positions(model)
    fitting = [number for number in answers if prompts.fits(number // samples, positions)]
    for number in sorted(set(answers) - set(fitting)):
        yield line(number, (), stopped=False, error=f"prompt and answer exceed the model's {positions} positions")
    model.eval()
    for answer in generate(
        model,
        [prompts.prompts[number // samples] for number in fitting],
        stop_ids=prompts.stop_ids,
        max_new_tokens=prompts.max_new_tokens,
        decoder_prefix_ids=prompts.decoder_prefix_ids,
        beams=prompts.beams,
        sampling=[prompts.sampling[number] for number in fitting] if prompts.sampling else (),
        stop_strings=stop_strings,
        continue_on_oom=continue_on_oom,
    ):
        yield line(fitting[answer.index], answer.ids, stopped=answer.stopped, error=answer.error)
