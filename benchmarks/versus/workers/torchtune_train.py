"""torchtune's recipe for LoRA on one device, run like `tune run lora_finetune_single_device`."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train."""
    import torchtune
    from omegaconf import OmegaConf

    recipe = _recipe(Path(torchtune.__file__).parents[1] / "recipes" / "lora_finetune_single_device.py")
    settings = OmegaConf.create(_settings(job))
    made = recipe.LoRAFinetuneRecipeSingleDevice(cfg=settings)
    made.setup(cfg=settings)
    made.train()
    return {}


def _recipe(path: Path) -> Any:
    """Return the module of a recipe, which torchtune ships as a script that cannot be imported."""
    spec = importlib.util.spec_from_file_location("torchtune_recipe", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"torchtune has no recipe {path.name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _settings(job: dict[str, Any]) -> dict[str, Any]:
    setting, job_file = job["setting"], sys.argv[1]
    rows = min(setting.get("rows") or job["examples_per_step"], job["examples_per_step"])
    accumulation = job["examples_per_step"] // rows
    return {
        "output_dir": job["scratch"],
        "device": "cuda" if job["gpu"] else "cpu",
        "dtype": setting["precision"],
        "seed": 0,
        "shuffle": False,
        "batch_size": rows,
        "epochs": 1,
        "max_steps_per_epoch": job["steps"],
        "gradient_accumulation_steps": accumulation,
        "clip_grad_norm": 1.0,
        "compile": bool(setting.get("compiled")),
        "enable_activation_checkpointing": setting["checkpointing"],
        "resume_from_checkpoint": False,
        "save_adapter_weights_only": True,
        "log_every_n_steps": 1,
        "collate_fn": "torchtune_parts.collate",
        "model": {
            "_component_": "torchtune_parts.model",
            "path": job["model"],
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True,
            "lora_rank": job["rank"],
            "lora_alpha": job["alpha"],
        },
        "checkpointer": {"_component_": "torchtune_parts.Checkpointer", "path": job["model"], "model_type": "LLAMA3"},
        "tokenizer": {"_component_": "torchtune_parts.Tokenizer", "pad_id": 2},
        "dataset": {"_component_": "torchtune_parts.Rows", "job": job_file},
        "metric_logger": {"_component_": "torchtune_parts.StepLogger", "job": job_file, "accumulation": accumulation},
        "optimizer": {
            "_component_": "torch.optim.AdamW",
            "lr": job["learning_rate"],
            "weight_decay": 0.0,
            "fused": True,
        },
        "lr_scheduler": {"_component_": "torchtune_parts.constant"},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
    }


if __name__ == "__main__":
    protocol.run(work)
