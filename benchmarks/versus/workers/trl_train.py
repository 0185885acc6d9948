"""TRL's SFTTrainer on the rows of a job, with one setting."""

from typing import Any

import hf
import protocol


def trainer_of(job: dict[str, Any], model: Any, tokenizer: Any, lora: Any, rows: list[dict[str, Any]]) -> Any:
    """Return a trainer that logs its steps."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    setting, arguments = job["setting"], hf.options(job)
    arguments["max_length"] = None if setting.get("padding_free") else job["longest"]
    if setting.get("padding_free"):
        arguments["padding_free"] = True
    if setting.get("packed"):  # about as many rows per step as the others
        arguments |= {"packing": True, "max_length": job["packed_length"]}
        arguments |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    clock = hf.Clock(job)
    made = SFTTrainer(
        model=model, args=SFTConfig(**arguments), train_dataset=Dataset.from_list(hf.columns(rows)),
        processing_class=tokenizer, peft_config=lora, callbacks=[clock],
    )  # fmt: skip
    held, given = _rows_in(made.train_dataset), [row["input_ids"] for row in rows]
    if held != given and not (setting.get("packed") and sorted(held) == sorted(given)):
        raise AssertionError("unequal tokens: the trainer's dataset has other ids than the job")
    made.data_collator = clock.fed = hf.Feed(made.data_collator)
    return made


def _rows_in(dataset: Any) -> list[list[int]]:
    """Return the ids of every row; packed rows are unpacked."""
    rows_of_ids = []
    for row in dataset:
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            rows_of_ids.append(list(row["input_ids"][start : start + length]))
            start += length
    return rows_of_ids


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train."""
    rows = protocol.rows_of(job)
    model, tokenizer, lora = hf.parts(job)
    hf.must_render_alike(rows, tokenizer)
    trainer_of(job, model, tokenizer, lora, rows).train()
    return {}


if __name__ == "__main__":
    protocol.run(work)
