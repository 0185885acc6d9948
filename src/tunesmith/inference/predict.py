"""Generate the answers of one model, one JSON line per row."""

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
    prompts: Prompts,
    task: Task,
    rows: Sequence[int],
    *,
    continue_on_oom: bool = False,
    sampling: Sequence[Sampling] = (),
    stop_strings: StopStrings | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the answers to the prompts with the indices `rows`, in the order in which they finish.

    A line is {id, row, prompt, prediction, reference, new_tokens, ids, stopped, error}. A prompt that does not fit in
    the model's positions has an `error` and no answer. The model is left in eval mode.

    Args:
        continue_on_oom: if even a single prompt does not fit in memory, give it an `error` instead of raising.
        sampling: how each answer is sampled; by default all are greedy, as in validation and evaluation.
        stop_strings: texts before which an answer ends.

    Raises:
        RecipeError: beam search is combined with sampling or stop strings.
        DoesNotFit: even a single prompt does not fit in memory.
    """

    def line(i: int, ids: Sequence[int], *, stopped: bool, error: str | None) -> dict[str, Any]:
        example = prompts.examples[i]
        text = "" if error else task.decode_answer(ids)
        return {
            "id": example.id,
            "row": example.row,
            "prompt": prompts.texts[i],
            "prediction": stop_strings.cut(text) if stop_strings else text,
            "reference": task.reference(example.turns),
            "new_tokens": len(ids),
            "ids": list(ids),
            "stopped": stopped,
            "error": error,
        }

    positions = max_positions(model)
    fitting = [i for i in rows if prompts.fits(i, positions)]
    for i in sorted(set(rows) - set(fitting)):
        yield line(i, (), stopped=False, error=f"prompt and answer exceed the model's {positions} positions")
    model.eval()
    for answer in generate(
        model,
        [prompts.prompts[i] for i in fitting],
        stop_ids=prompts.stop_ids,
        max_new_tokens=prompts.max_new_tokens,
        decoder_prefix_ids=prompts.decoder_prefix_ids,
        beams=prompts.beams,
        sampling=[sampling[i] for i in fitting] if sampling else (),
        stop_strings=stop_strings,
        continue_on_oom=continue_on_oom,
    ):
        yield line(fitting[answer.index], answer.ids, stopped=answer.stopped, error=answer.error)
