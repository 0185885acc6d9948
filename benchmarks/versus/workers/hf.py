"""Shared by TRL's trainer and the plain one: tokenized rows, a step clock, and counts of the tokens read."""

import time
from typing import Any

import protocol
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """A callback that logs the seconds and tokens, without padding, of each step."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._began = 0.0
        self.fed: Feed | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the finished step."""
        seconds = time.perf_counter() - self._began
        assert self.fed is not None
        tokens, trained = self.fed.of_step(state.global_step - 1, args.gradient_accumulation_steps)
        protocol.add_line(
            self._job, kind="step", step=state.global_step, seconds=seconds, tokens=tokens, trained_tokens=trained
        )
        self._began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Log the loss, which the trainer reports after the step."""
        if logs and "loss" in logs:
            protocol.add_line(self._job, kind="loss", step=state.global_step, loss=float(logs["loss"]))


class Feed:
    """A collator that counts the tokens and trained tokens of each batch, in the order of fetching."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate
        self._batches: list[tuple[int, int]] = []

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """Make a batch and record its counts."""
        batch = self._collate(features)
        tokens = sum(len(one["input_ids"]) for one in features)
        self._batches.append((tokens, int((batch["labels"][:, 1:] != -100).sum())))
        return batch

    def of_step(self, step: int, batches: int) -> tuple[int, int]:
        """Return the tokens and trained tokens of a step (from 0)."""
        counts = self._batches[step * batches : (step + 1) * batches]
        return sum(tokens for tokens, _ in counts), sum(trained for _, trained in counts)


def must_render_alike(rows: list[dict[str, Any]], tokenizer: Any) -> None:
    """Raise if transformers' chat template gives other tokens than those of the job."""
    for number, row in enumerate(rows):
        ids = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=True, return_dict=False)
        if list(ids) != row["input_ids"]:
            raise AssertionError(f"unequal tokens: the peer's template gives row {number} other ids")


def parts(job: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and adapter settings (None for full fine-tuning)."""
    setting = job["setting"]
    dtype = torch.bfloat16 if setting.get("precision") == "bf16" and not job["full"] else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    lora = LoraConfig(
        r=job["rank"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return model, tokenizer, None if job["full"] else lora


def options(job: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of both trainers: the same rows, order and optimizer; no checkpoints."""
    setting = job["setting"]
    rows = min(setting.get("rows") or job["examples_per_step"], job["examples_per_step"])
    arguments = {
        "output_dir": job["scratch"],
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": job["examples_per_step"] // rows,
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": job.get("schedule", "constant"),
        "warmup_steps": job.get("warmup_steps", 0),
        "train_sampling_strategy": "group_by_length" if setting.get("grouped") else "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": 0,
        "disable_tqdm": True,
    }
    if not job["gpu"] and not setting.get("out_of_the_box"):
        arguments["use_cpu"] = True
    if "checkpointing" in setting:
        arguments["gradient_checkpointing"] = setting["checkpointing"]
    if "precision" in setting:
        # In full fine-tuning, bf16 means autocast over fp32 weights, as in ours.
        arguments["bf16"] = setting["precision"] == "autocast" or (setting["precision"] == "bf16" and job["full"])
    for key, name in (("compiled", "torch_compile"), ("liger", "use_liger_kernel")):
        if setting.get(key):
            arguments[name] = True
    return arguments


def columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tokens and labels of the rows."""
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
