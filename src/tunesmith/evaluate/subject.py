"""What one model answers to the test rows. Base and tuned go through here with the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunesmith.core import interrupt
from tunesmith.core.files import complete_lines, digest_of, json_line, out_of_space_explained, read_json, write_json
from tunesmith.core.progress import Progress
from tunesmith.core.records import Example
from tunesmith.data.batches import TokenSet
from tunesmith.data.micro_batches import Division
from tunesmith.model.generate import generate
from tunesmith.model.isolation import attention_reach, why_not_apart
from tunesmith.model.load import Machine, most_positions
from tunesmith.model.out_of_memory import Fitting
from tunesmith.model.token_loss import token_loss
from tunesmith.tasks.base import Task

_BATCH_ROWS = 32
_MOST_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Questions:
    """The same for both models: rows, prompts, decoding and limits. `digest` stands for all of it."""

    examples: tuple[Example, ...]
    prompts: tuple[tuple[int, ...], ...]
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    opening: tuple[int, ...] = ()
    beams: int = 1

    @property
    def digest(self) -> str:
        """Return one digest of everything that both models must have in common."""
        ids = [e.id for e in self.examples]
        return digest_of([ids, self.prompts, self.opening, self.stop_ids, self.max_new_tokens, f"beams {self.beams}"])

    def fits(self, index: int, positions: int) -> bool:
        """Say whether a model that knows so many positions can read a prompt and write an answer of any length."""
        read, written = len(self.prompts[index]), len(self.opening) + self.max_new_tokens
        return max(read, written) <= positions if self.opening else read + written <= positions


def answer_all(
    name: str, model: Any, questions: Questions, task: Task, folder: Path, *, prompt_texts: Sequence[str], key: str
) -> list[dict[str, Any]]:
    """Return a generation for every question, in their order; finished ones are kept across interruptions.

    Args:
        folder: where `generations.jsonl` grows, line by line.
        key: digest of model and questions; lines written under another key are not used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, key_path = folder / "generations.jsonl", folder / "key.json"
    if not key_path.exists() or read_json(key_path) != key:
        path.unlink(missing_ok=True)
        write_json(key_path, key)
    lines = {line["id"]: line for line in complete_lines(path)}
    room = most_positions(model)
    todo = [i for i, e in enumerate(questions.examples) if e.id not in lines]
    fits = [i for i in todo if questions.fits(i, room)]
    progress = Progress(f"answers of {name}", total=len(questions.examples), unit="rows", start=len(lines))
    with out_of_space_explained(path), path.open("a", encoding="utf-8") as log:

        def keep(i: int, text: str, ids: Sequence[int], *, stopped: bool, error: str | None) -> None:
            example = questions.examples[i]
            line = {"id": example.id, "row": example.row, "prompt": prompt_texts[i], "prediction": text}
            line |= {"reference": task.reference(example.turns), "new_tokens": len(ids), "ids": list(ids)}
            lines[example.id] = {**line, "stopped": stopped, "error": error}
            log.write(json_line(lines[example.id]))
            log.flush()
            progress.update(len(lines))

        for i in sorted(set(todo) - set(fits)):
            keep(i, "", (), stopped=False, error=f"prompt and answer exceed the model's {room} positions")
        model.eval()
        for answer in generate(
            model,
            [questions.prompts[i] for i in fits],
            stop_ids=questions.stop_ids,
            max_new_tokens=questions.max_new_tokens,
            opening=questions.opening,
            beams=questions.beams,
            batch_rows=_BATCH_ROWS,
        ):
            text = task.answer(answer.ids)
            keep(fits[answer.index], text, answer.ids, stopped=answer.stopped, error=None)
    progress.close()
    return [lines[e.id] for e in questions.examples]


def likelihoods(model: Any, tokens: TokenSet, rows: Sequence[int], on: Machine, pad_id: int) -> list[dict[str, float]]:
    """Return {log_likelihood, tokens, correct} of each row: nats summed over its trained tokens."""
    model.eval()
    apart = why_not_apart(model, tokens, pad_id, on) is None
    division = Division(_MOST_TOKENS, packing="auto" if apart else "never", most_packed=attention_reach(model))
    return Fitting(division).run(partial(_likelihoods, model, tokens, rows, on, pad_id), tokens, rows)


@torch.inference_mode()
def _likelihoods(
    model: Any, tokens: TokenSet, rows: Sequence[int], on: Machine, pad_id: int, division: Division
) -> list[dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for group, batch in division.batches(tokens, rows, pad_id):
        interrupt.check()
        result = token_loss(model, batch.to(on.device))
        for place, row in enumerate(group):
            mine = result.rows == place
            found[row] = {
                "log_likelihood": -float(result.nll[mine].double().sum()),
                "tokens": float(mine.sum()),
                "correct": float(result.correct[mine].sum()),
            }
    return [found[row] for row in rows]


def health(generations: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Count answers that failed, are empty, were cut off by the limit, and stopped by themselves."""
    return {
        "rows": len(generations),
        "failed": sum(line["error"] is not None for line in generations),
        "empty": sum(line["error"] is None and not line["prediction"].strip() for line in generations),
        "cut_off": sum(line["error"] is None and not line["stopped"] for line in generations),
        "stopped": sum(bool(line["stopped"]) for line in generations),
    }
