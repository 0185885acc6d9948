"""Answers and likelihoods of one model on the test rows. Base and tuned get the same prompts through this code."""

import time
from collections.abc import Sequence
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

_MAX_TOKENS = 4096  # of a micro-batch when likelihoods are computed


def generate_answers(
    name: str, model: Any, prompts: Prompts, task: Task, folder: Path, *, key: str
) -> tuple[list[dict[str, Any]], float]:
    """Generate all answers to the prompts. Finished answers survive an interruption.

    Returns:
        the answers in the order in which `Prompts` numbers them, and the speed of this rank in generated tokens per
        second; 0 if it generated none.

    Args:
        folder: folder of `generations.jsonl`, to which each answer is appended at once.
        key: digest of model and prompts; answers in the file under another key are discarded.
    """
    group = current_group()
    finished = group.run_on_rank0(partial(load_finished, folder, key))
    answers = {_answer_key(line): line for line in finished}
    keys = [(example.id, number) for example in prompts.examples for number in range(1, prompts.samples + 1)]
    pending = [place for place, key_ in enumerate(keys) if key_ not in answers]
    local_answers = group.local_rows(pending, prompts.answer_lengths)
    total = len(finished) + len(local_answers)
    unit = "rows" if prompts.samples == 1 else "samples"
    progress = Progress(f"answers of {name}", total=total, unit=unit, start=len(finished))
    path, generated, began = _generations_path(folder, group.rank_info.rank), list[dict[str, Any]](), time.monotonic()
    with translate_enospc(path), path.open("a", encoding="utf-8") as log, lockstep_forward(model, group):
        for line in predict(model, prompts, task, local_answers):
            generated.append(line)
            log.write(json_line(line))
            log.flush()
            progress.update(len(finished) + len(generated))
    progress.close()
    tokens, seconds = sum(line["new_tokens"] for line in generated), time.monotonic() - began
    answers |= {_answer_key(line): line for lines in group.all_gather(generated) for line in lines}
    ordered = [answers[key_] for key_ in keys]
    group.run_on_rank0(partial(_merge_files, folder, ordered))
    return ordered, tokens / seconds if tokens else 0.0


def _answer_key(line: dict[str, Any]) -> tuple[str, int]:
    """Return the id of an answer's row and the number of the sample."""
    return line["id"], line.get("sample", 1)


def _generations_path(folder: Path, rank: int) -> Path:
    """Return the file of a rank's answers."""
    return folder / (f"generations-{rank}.jsonl" if rank else "generations.jsonl")


def load_finished(folder: Path, key: str) -> list[dict[str, Any]]:
    """Return the stored answers of all ranks, also of an earlier run with more ranks; delete those of another key."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, key_path = sorted(folder.glob("generations*.jsonl")), folder / "key.json"
    if key_path.exists() and read_json(key_path) == key:
        return [line for path in paths for line in read_whole_lines(path)]
    for path in paths:
        path.unlink()
    write_json(key_path, key)
    return []


def _merge_files(folder: Path, answers: Sequence[dict[str, Any]]) -> None:
    """If other ranks have written files, replace all files by one."""
    if other_files := list(folder.glob("generations-*.jsonl")):
        write_jsonl(_generations_path(folder, 0), answers)
        for path in other_files:
            path.unlink()


def score_likelihoods(
    model: Any, tokens: TokenDataset, rows: Sequence[int], compute: ComputeConfig, pad_id: int
) -> list[dict[str, float]]:
    """Return {log_likelihood, tokens, correct} for each row: sums over its trained tokens, log_likelihood in nats."""
    group = current_group()
    model.eval()
    can_pack = packing_unsupported_reason(model, tokens, pad_id, compute) is None
    policy = MicroBatchPolicy(
        _MAX_TOKENS,
        packing="auto" if can_pack else "never",
        packed_attention=has_packed_attention(model),
        attention_window=attention_window(model),
    )
    local_rows = group.local_rows(rows, tokens.lengths)

    @torch.inference_mode()
    def likelihoods_of(policy: MicroBatchPolicy) -> dict[int, dict[str, float]]:
        likelihoods = {}
        for batch_rows, batch in policy.batches(tokens, local_rows, pad_id):
            interrupt.check()
            result = token_loss(model, batch.to(compute.device))
            for index, row in enumerate(batch_rows):
                is_own = result.rows == index
                likelihoods[row] = {
                    "log_likelihood": -float(result.nll[is_own].double().sum()),
                    "tokens": float(is_own.sum()),
                    "correct": float(result.correct[is_own].sum()),
                }
        return likelihoods

    with lockstep_forward(model, group):
        local = OomRetry(policy, lockstep=is_sharded(model)).run(likelihoods_of, tokens, local_rows)
    by_row = {row: sums for likelihoods in group.all_gather(local) for row, sums in likelihoods.items()}
    return [by_row[row] for row in rows]


def response_stats(generations: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Count the answers that failed, are empty, were cut off at the token limit, or ended by themselves."""
    return {
        "rows": len(generations),
        "failed": sum(line["error"] is not None for line in generations),
        "empty": sum(line["error"] is None and not line["prediction"].strip() for line in generations),
        "cut_off": sum(line["error"] is None and not line["stopped"] for line in generations),
        "stopped": sum(bool(line["stopped"]) for line in generations),
    }
