"""What one model answers to the test rows. Base and tuned go through here with the same questions."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunesmith.answering.answers import answers
from tunesmith.answering.questions import Questions
from tunesmith.core import interrupt
from tunesmith.core.files import complete_lines, json_line, out_of_space_explained, read_json, write_json
from tunesmith.core.progress import Progress
from tunesmith.data.batches import TokenSet
from tunesmith.data.micro_batches import Division
from tunesmith.model.isolation import attention_reach, why_not_apart
from tunesmith.model.load import Machine
from tunesmith.model.out_of_memory import Fitting
from tunesmith.model.row_attention import has_row_attention
from tunesmith.model.token_loss import token_loss
from tunesmith.tasks.base import Task

_MOST_TOKENS = 4096


def answer_all(
    name: str, model: Any, questions: Questions, task: Task, folder: Path, *, key: str
) -> list[dict[str, Any]]:
    """Return an answer to every question, in their order; finished ones are kept across interruptions.

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
    todo = [i for i, e in enumerate(questions.examples) if e.id not in lines]
    progress = Progress(f"answers of {name}", total=len(questions.examples), unit="rows", start=len(lines))
    with out_of_space_explained(path), path.open("a", encoding="utf-8") as log:
        for line in answers(model, questions, task, todo):
            lines[line["id"]] = line
            log.write(json_line(line))
            log.flush()
            progress.update(len(lines))
    progress.close()
    return [lines[e.id] for e in questions.examples]


def likelihoods(model: Any, tokens: TokenSet, rows: Sequence[int], on: Machine, pad_id: int) -> list[dict[str, float]]:
    """Return {log_likelihood, tokens, correct} of each row: nats summed over its trained tokens."""
    model.eval()
    apart = why_not_apart(model, tokens, pad_id, on) is None
    division = Division(
        _MOST_TOKENS,
        packing="auto" if apart else "never",
        by_row=has_row_attention(model),
        reach=attention_reach(model),
    )
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
