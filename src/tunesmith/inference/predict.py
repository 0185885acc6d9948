"""What one model answers to questions, one line a row."""

from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.inference.generate import generate
from tunesmith.inference.prompts import Prompts
from tunesmith.inference.request import StopStrings
from tunesmith.inference.sampling import Sampling
from tunesmith.model.load import max_positions
from tunesmith.tasks.base import Task


def predict(
    model: Any,
    questions: Prompts,
    task: Task,
    rows: Sequence[int],
    *,
    continue_on_oom: bool = False,
    sampling: Sequence[Sampling] = (),
    stop_strings: StopStrings | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the answer to each of the questions `rows`, in the order in which they finish.

    A line is {id, row, prompt, prediction, reference, new_tokens, ids, stopped, error}. What is longer than the model's
    positions has no answer but an `error`. The model is left in eval mode.

    Args:
        continue_on_oom: give a prompt that memory does not suffice for an `error` too, instead of raising.
        sampling: how the answer to each question is chosen; by default all are greedy, as training and evaluation ask.
        stop_strings: texts before which an answer ends.

    Raises:
        RecipeError: a beam search is combined with sampling or stop strings.
        DoesNotFit: memory does not suffice for one prompt alone.
    """

    def line(i: int, ids: Sequence[int], *, stopped: bool, error: str | None) -> dict[str, Any]:
        example = questions.examples[i]
        text = "" if error else task.decode_answer(ids)
        return {
            "id": example.id,
            "row": example.row,
            "prompt": questions.texts[i],
            "prediction": stop_strings.cut(text) if stop_strings else text,
            "reference": task.reference(example.turns),
            "new_tokens": len(ids),
            "ids": list(ids),
            "stopped": stopped,
            "error": error,
        }

    room = max_positions(model)
    fitting = [i for i in rows if questions.fits(i, room)]
    for i in sorted(set(rows) - set(fitting)):
        yield line(i, (), stopped=False, error=f"prompt and answer exceed the model's {room} positions")
    model.eval()
    for answer in generate(
        model,
        [questions.prompts[i] for i in fitting],
        stop_ids=questions.stop_ids,
        max_new_tokens=questions.max_new_tokens,
        decoder_start_ids=questions.decoder_start_ids,
        beams=questions.beams,
        sampling=[sampling[i] for i in fitting] if sampling else (),
        stop_strings=stop_strings,
        continue_on_oom=continue_on_oom,
    ):
        yield line(fitting[answer.index], answer.ids, stopped=answer.stopped, error=answer.error)
