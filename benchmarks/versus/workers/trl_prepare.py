"""TRL's tokenization, which SFTTrainer runs when it is created; its model is tiny, to cost no time."""

import resource
from typing import Any

import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Create a trainer with the rows."""
    from datasets import load_dataset
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    shape = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    data = load_dataset("json", data_files=job["messages"], split="train")
    settings = SFTConfig(
        output_dir=job["scratch"], use_cpu=True, report_to=[], dataset_num_proc=job["processes"], max_length=1024,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_config(shape), args=settings, train_dataset=data, processing_class=tokenizer
    )
    helpers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    count = job["processes"] or 0
    return {"rows": len(trainer.train_dataset), "helpers": count, "helper_rss_gib": round(helpers, 3) if count else 0.0}


if __name__ == "__main__":
    protocol.run(work)
