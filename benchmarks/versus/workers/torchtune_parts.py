"""What torchtune's recipe is configured with: a job's rows as its dataset, the model's weights, a logger of steps."""

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
    """Tokens and trained tokens of every batch that was collated, in order."""

    batches: list[tuple[int, int]] = []  # noqa: RUF012 - torchtune makes its parts by name, so they share by class


def model(path: str, lora_attn_modules: list[str], apply_lora_to_mlp: bool, lora_rank: int, lora_alpha: float) -> Any:
    """Return a Llama with adapters on all linear layers but the output, whose weights are the embedding's own."""
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
    """Reads a folder of transformers; writes nothing, since what is saved is not measured."""

    def __init__(self, path: str, model_type: str = "", should_load_recipe_state: bool = False) -> None:
        self._path = Path(path)

    def load_checkpoint(self) -> dict[str, Any]:
        """Return the weights under torchtune's names."""
        config = json.loads((self._path / "config.json").read_text(encoding="utf-8"))
        weights = load_file(self._path / "model.safetensors")
        found = hf_to_tune(
            weights, num_heads=config["num_attention_heads"], num_kv_heads=config["num_key_value_heads"],
            dim=config["hidden_size"], head_dim=config["head_dim"],
        )  # fmt: skip
        return {"model": {**found, "output.weight": found["tok_embeddings.weight"]}}

    def save_checkpoint(self, *args: Any, **settings: Any) -> None:
        """Do nothing."""


class Tokenizer:
    """Only what the recipe asks of one: the rows are tokens already."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id


class Rows(torch.utils.data.Dataset):
    """A job's rows."""

    def __init__(self, tokenizer: Tokenizer, job: str) -> None:
        self._rows = protocol.rows_of(json.loads(Path(job).read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"tokens": self._rows[place]["input_ids"], "labels": self._rows[place]["labels"]}


def collate(batch: list[dict[str, Any]], padding_idx: int = 0, ignore_idx: int = -100) -> Any:
    """Pad as torchtune does, and count."""
    tokens = sum(len(one["tokens"]) for one in batch)
    trained = sum(label != ignore_idx for one in batch for label in one["labels"][1:])
    Counts.batches.append((tokens, trained))
    return padded_collate_sft(batch, padding_idx=padding_idx, ignore_idx=ignore_idx)


def constant(optimizer: Any, num_training_steps: int, last_epoch: int) -> Any:
    """Leave the learning rate as it is."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


class StepLogger:
    """Logs every step as the harness reads it."""

    def __init__(self, job: str, accumulation: int) -> None:
        self._job = json.loads(Path(job).read_text(encoding="utf-8"))
        self._accumulation = accumulation
        self.clock = time.perf_counter()

    def log_config(self, config: Any) -> None:
        """Do nothing."""

    def log_dict(self, told: dict[str, Any], step: int) -> None:
        """Log a step."""
        now = time.perf_counter()
        mine = Counts.batches[(step - 1) * self._accumulation : step * self._accumulation]
        protocol.add_line(
            self._job, kind="step", step=step, seconds=now - self.clock, loss=float(told["loss"]),
            tokens=sum(tokens for tokens, _ in mine), trained_tokens=sum(trained for _, trained in mine),
        )  # fmt: skip
        self.clock = time.perf_counter()

    def close(self) -> None:
        """Do nothing."""
