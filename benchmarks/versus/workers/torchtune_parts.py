"""The components of torchtune's recipe: the job's rows as a dataset, the model's weights, a step logger."""

import json
import time
from pathlib import Path
from typing import Any

import protocol
import torch
from safetensors.torch import load_file
from torchtune.data import padded_collate_sft
from torchtune.models.convert_weights import hf_to_tune
from torchtune.models.llama3 import lora_llama3


class Counts:
    """The tokens and trained tokens of each collated batch, in order."""

    batches: list[tuple[int, int]] = []  # noqa: RUF012 - torchtune makes components by name, so that they share this by class


def model(path: str, lora_attn_modules: list[str], apply_lora_to_mlp: bool, lora_rank: int, lora_alpha: float) -> Any:
    """Return a Llama with tied embeddings and adapters on all linear layers except the output."""
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    made = lora_llama3(
        lora_attn_modules=list(lora_attn_modules), apply_lora_to_mlp=apply_lora_to_mlp, lora_rank=lora_rank,
        lora_alpha=lora_alpha, vocab_size=config["vocab_size"], num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"], num_kv_heads=config["num_key_value_heads"],
        embed_dim=config["hidden_size"], intermediate_dim=config["intermediate_size"],
        max_seq_len=config["max_position_embeddings"], norm_eps=config["rms_norm_eps"],
        rope_base=int(config["rope_parameters"]["rope_theta"]),
    )  # fmt: skip
    made.output.weight = made.tok_embeddings.weight
    return made


class Checkpointer:
    """A checkpointer that reads a folder of transformers and writes nothing, because saving is not measured."""

    def __init__(self, path: str, model_type: str = "", should_load_recipe_state: bool = False) -> None:
        self._path = Path(path)

    def load_checkpoint(self) -> dict[str, Any]:
        """Return the weights with torchtune's names."""
        config = json.loads((self._path / "config.json").read_text(encoding="utf-8"))
        weights = load_file(self._path / "model.safetensors")
        weights = hf_to_tune(
            weights, num_heads=config["num_attention_heads"], num_kv_heads=config["num_key_value_heads"],
            dim=config["hidden_size"], head_dim=config["head_dim"],
        )  # fmt: skip
        return {"model": {**weights, "output.weight": weights["tok_embeddings.weight"]}}

    def save_checkpoint(self, *args: Any, **settings: Any) -> None:
        """Do nothing."""


class Tokenizer:
    """The part of a tokenizer that the recipe needs; the rows are tokenized already."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id


class Rows(torch.utils.data.Dataset):
    """The rows of a job."""

    def __init__(self, tokenizer: Tokenizer, job: str) -> None:
        self._rows = protocol.rows_of(json.loads(Path(job).read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"tokens": self._rows[place]["input_ids"], "labels": self._rows[place]["labels"]}


def collate(batch: list[dict[str, Any]], padding_idx: int = 0, ignore_idx: int = -100) -> Any:
    """Pad as torchtune does, and count tokens."""
    tokens = sum(len(one["tokens"]) for one in batch)
    trained = sum(label != ignore_idx for one in batch for label in one["labels"][1:])
    Counts.batches.append((tokens, trained))
    return padded_collate_sft(batch, padding_idx=padding_idx, ignore_idx=ignore_idx)


def constant(optimizer: Any, num_training_steps: int, last_epoch: int) -> Any:
    """Return a scheduler with a constant learning rate."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


class StepLogger:
    """A logger in the protocol of the harness."""

    def __init__(self, job: str, accumulation: int) -> None:
        self._job = json.loads(Path(job).read_text(encoding="utf-8"))
        self._accumulation = accumulation
        self.clock = time.perf_counter()

    def log_config(self, config: Any) -> None:
        """Do nothing."""

    def log_dict(self, metrics: dict[str, Any], step: int) -> None:
        """Log a step."""
        now = time.perf_counter()
        counts = Counts.batches[(step - 1) * self._accumulation : step * self._accumulation]
        protocol.add_line(
            self._job, kind="step", step=step, seconds=now - self.clock, loss=float(metrics["loss"]),
            tokens=sum(tokens for tokens, _ in counts), trained_tokens=sum(trained for _, trained in counts),
        )  # fmt: skip
        self.clock = time.perf_counter()

    def close(self) -> None:
        """Do nothing."""
