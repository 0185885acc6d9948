"""transformers' Trainer with peft's adapters on the rows of a job."""

from typing import Any

import hf
import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train."""
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    rows = protocol.rows_of(job)
    model, tokenizer, lora = hf.parts(job)
    hf.must_render_alike(rows, tokenizer)
    if lora is not None:
        model = get_peft_model(model, lora)

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(one["input_ids"]) for one in features)

        def padded(key: str, value: int) -> Any:
            return torch.tensor([[*one[key], *[value] * (width - len(one[key]))] for one in features])

        mask = [[1] * len(one["input_ids"]) + [0] * (width - len(one["input_ids"])) for one in features]
        return {
            "input_ids": padded("input_ids", tokenizer.pad_token_id),
            "attention_mask": torch.tensor(mask),
            "labels": padded("labels", -100),
        }

    clock = hf.Clock(job)
    clock.fed = hf.Feed(collate)
    data = Dataset.from_list(hf.columns(rows))
    Trainer(
        model=model, args=TrainingArguments(**hf.options(job)), train_dataset=data, data_collator=clock.fed,
        callbacks=[clock],
    ).train()  # fmt: skip
    return {}


if __name__ == "__main__":
    protocol.run(work)
