"""Unsloth's model with TRL's trainer, as in its documentation. Needs a GPU."""

from typing import Any

import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train."""
    import hf
    from trl_train import trainer_of
    from unsloth import FastLanguageModel  # first, because it patches later imports

    rows = protocol.rows_of(job)
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=job["model"], max_seq_length=job["longest"], load_in_4bit=False
    )
    hf.must_render_alike(rows, tokenizer)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model, r=job["rank"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules=layers
    )
    trainer_of(job, model, tokenizer, None, rows).train()
    return {}


if __name__ == "__main__":
    protocol.run(work)
