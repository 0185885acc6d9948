"""What one model answers to the test rows. Base and tuned go through here with the same prompts."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunesmith.core import interrupt
from tunesmith.core.files import read_json, translate_enospc, write_json
from tunesmith.core.jsonl import json_line, read_whole_lines, write_jsonl
from tunesmith.core.progress import Progress
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.fsdp import is_sharded, lockstep_forward
from tunesmith.distributed.process_group import current_group
from tunesmith.inference.predict import predict
from tunesmith.inference.prompts import Prompts
from tunesmith.kernels.oom import OomRetry
from tunesmith.kernels.packed_attention import has_packed_attention
from tunesmith.kernels.packing_check import attention_window, packing_unsupported_reason
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.load import ComputeConfig
from tunesmith.tasks.base import Task

_MAX_TOKENS = 4096


def generate_answers(
    name: str,
    model: Any,
    prompts: Prompts,
    task: Task,
    folder: Path,
    *,
    key: str,
    on_finished: Callable[[int, float], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Return an answer to every question, in their order; finished ones are kept across interruptions.

    Args:
        folder: where `generations.jsonl` grows, line by line.
        key: digest of model and prompts; lines written under another key are not used.
        on_finished: told how many tokens this process has written now, and the seconds that it took.
    """
    group = current_group()
    known = group.run_on_rank0(partial(_load_finished, folder, key))
    lines = {line["id"]: line for line in known}
    todo = [i for i, e in enumerate(prompts.examples) if e.id not in lines]
    mine = group.local_rows(todo, [len(prompt) for prompt in prompts.prompts])
    progress = Progress(f"answers of {name}", total=len(known) + len(mine), unit="rows", start=len(known))
    path, made, began = _generations_path(folder, group.rank_info.rank), list[dict[str, Any]](), time.monotonic()
    with translate_enospc(path), path.open("a", encoding="utf-8") as log, lockstep_forward(model, group):
        for line in predict(model, prompts, task, mine):
            made.append(line)
            log.write(json_line(line))
            log.flush()
            progress.update(len(known) + len(made))
    progress.close()
    on_finished(sum(line["new_tokens"] for line in made), time.monotonic() - began)
    lines |= {line["id"]: line for some in group.all_gather(made) for line in some}
    found = [lines[e.id] for e in prompts.examples]
    group.run_on_rank0(partial(_merge_files, folder, found))
    return found


def _generations_path(folder: Path, rank: int) -> Path:
    """Return where a process keeps its answers."""
    return folder / (f"generations-{rank}.jsonl" if rank else "generations.jsonl")


def _load_finished(folder: Path, key: str) -> list[dict[str, Any]]:
    """Return the answers that are there, of however many processes; remove those that were given under another key."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, key_path = sorted(folder.glob("generations*.jsonl")), folder / "key.json"
    if key_path.exists() and read_json(key_path) == key:
        return [line for path in paths for line in read_whole_lines(path)]
    for path in paths:
        path.unlink()
    write_json(key_path, key)
    return []


def _merge_files(folder: Path, found: Sequence[dict[str, Any]]) -> None:
    """Keep in one file what other processes than the first have left in theirs."""
    if theirs := list(folder.glob("generations-*.jsonl")):
        write_jsonl(_generations_path(folder, 0), found)
        for path in theirs:
            path.unlink()


def score_likelihoods(
    model: Any, tokens: TokenDataset, rows: Sequence[int], compute: ComputeConfig, pad_id: int
) -> list[dict[str, float]]:
    """Return {log_likelihood, tokens, correct} of each row: nats summed over its trained tokens."""
    group = current_group()
    model.eval()
    apart = packing_unsupported_reason(model, tokens, pad_id, compute) is None
    policy = MicroBatchPolicy(
        _MAX_TOKENS,
        packing="auto" if apart else "never",
        packed_attention=has_packed_attention(model),
        attention_window=attention_window(model),
    )
    mine = group.local_rows(rows, tokens.lengths)
    with lockstep_forward(model, group):
        work = partial(_likelihoods, model, tokens, mine, compute, pad_id)
        found = OomRetry(policy, lockstep=is_sharded(model)).run(work, tokens, mine)
    by_row = {row: one for some in group.all_gather(found) for row, one in some.items()}
    return [by_row[row] for row in rows]


@torch.inference_mode()
def _likelihoods(
    model: Any,
    tokens: TokenDataset,
    rows: Sequence[int],
    compute: ComputeConfig,
    pad_id: int,
    policy: MicroBatchPolicy,
) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for group, batch in policy.batches(tokens, rows, pad_id):
        interrupt.check()
        result = token_loss(model, batch.to(compute.device))
        for place, row in enumerate(group):
            mine = result.rows == place
            found[row] = {
                "log_likelihood": -float(result.nll[mine].double().sum()),
                "tokens": float(mine.sum()),
                "correct": float(result.correct[mine].sum()),
            }
    return found


def response_stats(generations: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Count answers that failed, are empty, were cut off by the limit, and stopped by themselves."""
    return {
        "rows": len(generations),
        "failed": sum(line["error"] is not None for line in generations),
        "empty": sum(line["error"] is None and not line["prediction"].strip() for line in generations),
        "cut_off": sum(line["error"] is None and not line["stopped"] for line in generations),
        "stopped": sum(bool(line["stopped"]) for line in generations),
    }
