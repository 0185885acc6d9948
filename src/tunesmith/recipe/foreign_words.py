"""What users of TRL, transformers, Axolotl and LLaMA-Factory write, and the key of a recipe that does it here."""

from typing import NamedTuple


class Ours(NamedTuple):
    """The keys of a recipe that a word of another tool stands for, and how they differ from it."""

    keys: tuple[str, ...]
    note: str = ""


_ROWS_PER_STEP = Ours(
    ("train.examples_per_step", "train.micro_batch"),
    "`examples_per_step` is the whole batch of one optimizer step, over all devices and accumulation; `micro_batch` is "
    "what one forward pass takes, and follows from memory",
)
_ACCUMULATION = Ours(
    ("train.examples_per_step",), "it is the whole batch of a step; accumulation follows from it and from memory"
)
_LENGTH = Ours(("data.max_tokens_per_example",), "what is longer is treated as `data.too_long` says")
_FOUR_BITS = Ours(("tuning.method", "tuning.bits"), "write `tuning: {method: qlora, bits: 4}`")
_EIGHT_BITS = Ours(("tuning.method", "tuning.bits"), "write `tuning: {method: qlora, bits: 8}`")
_PRECISION = Ours(("model.precision",), "`auto` is bf16 where the machine computes in it")
_TEST_FILE = Ours(
    ("data.split.column",), "test rows come from `data.source` too: a column of the rows says train, valid or test"
)
_VALID_FILE = Ours(
    ("data.split.valid", "data.split.column"),
    "a fraction of the rows of `data.source`, or those that a column of the rows names",
)
_BASE = Ours(("model.base",))
_SOURCE = Ours(("data.source",), "write `{file: rows.jsonl}` or `{hub: org/name}`")
_TRACK = Ours(("track",), "a list, such as `[mlflow]`")
_SHARDING = Ours(("launch.sharding",), "FSDP2 is the only way to divide a model, and `auto` takes it when needed")
_SCHEDULE = Ours(("train.schedule",))
_WARMUP_STEPS = Ours(("train.warmup_fraction",), "a fraction of all steps, not a number of steps")
_ONLY_ANSWERS = Ours(
    ("data.train_on",), "only answers are ever learned; in conversations `train_on` says all of them or the last"
)
_TEMPLATE = Ours(
    ("model.chat_markup",), "the model's own chat template is used; `chat_markup: chatml` gives one to a model without"
)
_METHOD = Ours(("tuning.method",), "full, lora or qlora")
_AUTOMATIC = Ours((), "it is chosen automatically, and changes speed only; remove it")
_EVERY_STEP = Ours((), "every step is logged to train/metrics.jsonl; remove it")
_OUT = Ours((), "the run's folder is runs/NAME/ID, or that of `--out`")
_RESUME = Ours((), "an interrupted run resumes when the same command runs again; remove it")
_BEST = Ours(("train.choose_by",), "the best checkpoint is always kept and used")
_NOT_THERE = Ours((), "there is nothing like it here; remove it")
_GREEDY = Ours(("evaluate.beams",), "evaluation is greedy, or a beam search; nothing is sampled")

WORDS: dict[str, Ours] = {
    # The model
    "base_model": _BASE,
    "model_name_or_path": _BASE,
    "model_name": _BASE,
    "model_id": _BASE,
    "model_path": _BASE,
    "pretrained_model_name_or_path": _BASE,
    "adapter_name_or_path": Ours(("model.base",), "name the adapter as the base: it is trained on"),
    "lora_model_dir": Ours(("model.base",), "name the adapter as the base: it is trained on"),
    "model_revision": Ours(("model.base",), "write `org/name@revision`"),
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "tf32": _PRECISION,
    "torch_dtype": _PRECISION,
    "dtype": _PRECISION,
    "pure_bf16": _PRECISION,
    "bnb_4bit_compute_dtype": _PRECISION,
    "compute_dtype": _PRECISION,
    "attn_implementation": Ours(("model.attention",)),
    "flash_attn": Ours(("model.attention",)),
    "flash_attention": Ours(("model.attention",)),
    "use_flash_attention_2": Ours(("model.attention",)),
    "chat_template": _TEMPLATE,
    "template": _TEMPLATE,
    "trust_remote_code": Ours((), "code of a model's repository is never run; remove it"),
    # Data
    "dataset": _SOURCE,
    "datasets": _SOURCE,
    "dataset_name": _SOURCE,
    "dataset_path": _SOURCE,
    "dataset_dir": _SOURCE,
    "train_file": _SOURCE,
    "train_dataset": _SOURCE,
    "data_files": Ours(("data.source.file",)),
    "dataset_config": Ours(("data.source.config",)),
    "dataset_text_field": Ours(("data.text",)),
    "text_column": Ours(("data.text",)),
    "text_field": Ours(("data.text",)),
    "test_datasets": _TEST_FILE,
    "test_dataset": _TEST_FILE,
    "test_file": _TEST_FILE,
    "data.test": _TEST_FILE,
    "eval_dataset": _VALID_FILE,
    "validation_file": _VALID_FILE,
    "valid_file": _VALID_FILE,
    "data.valid": _VALID_FILE,
    "data.validation": _VALID_FILE,
    "val_set_size": Ours(("data.split.valid",), "`data.split.test` takes the rows of the verdict, too"),
    "val_size": Ours(("data.split.valid",), "`data.split.test` takes the rows of the verdict, too"),
    "validation_split": Ours(("data.split.valid",)),
    "test_size": Ours(("data.split.test",)),
    "max_samples": Ours(("data.train_rows",)),
    "max_train_samples": Ours(("data.train_rows",)),
    "max_eval_samples": Ours(("evaluate.rows",)),
    "max_length": _LENGTH,
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "cutoff_len": _LENGTH,
    "sequence_len": _LENGTH,
    "model_max_length": _LENGTH,
    "block_size": _LENGTH,
    "max_source_length": _LENGTH,
    "max_prompt_length": _LENGTH,
    "max_target_length": Ours(("data.max_target_tokens",)),
    "truncation": Ours(("data.too_long",)),
    "conversations": Ours(("data.messages",), "a column of {role, content} messages"),
    "messages_column": Ours(("data.messages",)),
    "field_messages": Ours(("data.messages",)),
    "prompt_template": Ours(("data.prompt",)),
    "prompt_column": Ours(("data.prompt",), "a template with columns in braces"),
    "instruction": Ours(("data.prompt",), "a template with columns in braces"),
    "completion": Ours(("data.response",), "a template with columns in braces"),
    "output": Ours(("data.response",), "a template with columns in braces"),
    "response_column": Ours(("data.response",), "a template with columns in braces"),
    "system_prompt": Ours(("data.system",)),
    "default_system": Ours(("data.system",)),
    "formatting": Ours(("data.task",), "text, completion, chat or seq2seq"),
    "stage": Ours(("data.task",), "text for pretraining; completion, chat or seq2seq for supervised fine-tuning"),
    "train_on_inputs": _ONLY_ANSWERS,
    "train_on_prompt": _ONLY_ANSWERS,
    "mask_history": _ONLY_ANSWERS,
    "completion_only_loss": _ONLY_ANSWERS,
    "assistant_only_loss": _ONLY_ANSWERS,
    "roles_to_train": _ONLY_ANSWERS,
    "tools": Ours((), "tool calls are not supported yet; texts with tools can be columns of `data.prompt`"),
    # Tuning
    "adapter": _METHOD,
    "finetuning_type": _METHOD,
    "use_peft": _METHOD,
    "lora": _METHOD,
    "qlora": _METHOD,
    "load_in_4bit": _FOUR_BITS,
    "load_in_8bit": _EIGHT_BITS,
    "quantization_bit": _FOUR_BITS,
    "bnb_4bit_quant_type": Ours(("tuning.quantization",), "of `method: qlora`"),
    "bnb_4bit_use_double_quant": Ours(("tuning.double_quantization",), "of `method: qlora`"),
    "lora_r": Ours(("tuning.rank",)),
    "lora_rank": Ours(("tuning.rank",)),
    "r": Ours(("tuning.rank",)),
    "lora_alpha": Ours(("tuning.alpha",)),
    "lora_dropout": Ours(("tuning.dropout",)),
    "lora_target": Ours(("tuning.target",)),
    "lora_target_modules": Ours(("tuning.target",)),
    "lora_target_linear": Ours(("tuning.target",), "`all-linear` is the default"),
    "target_modules": Ours(("tuning.target",)),
    "use_rslora": Ours(("tuning.rslora",)),
    "use_dora": Ours(("tuning.dora",)),
    "modules_to_save": _NOT_THERE,
    "lora_modules_to_save": _NOT_THERE,
    "lora_bias": _NOT_THERE,
    # Training
    "lr": Ours(("train.learning_rate",)),
    "max_lr": Ours(("train.learning_rate",)),
    "batch_size": _ROWS_PER_STEP,
    "train_batch_size": _ROWS_PER_STEP,
    "per_device_train_batch_size": _ROWS_PER_STEP,
    "per_device_batch_size": _ROWS_PER_STEP,
    "micro_batch_size": _ROWS_PER_STEP,
    "global_batch_size": _ACCUMULATION,
    "gradient_accumulation_steps": _ACCUMULATION,
    "grad_accum": _ACCUMULATION,
    "per_device_eval_batch_size": _AUTOMATIC,
    "eval_batch_size": _AUTOMATIC,
    "num_train_epochs": Ours(("train.epochs",)),
    "num_epochs": Ours(("train.epochs",)),
    "n_epochs": Ours(("train.epochs",)),
    "max_train_steps": Ours(("train.max_steps",)),
    "num_steps": Ours(("train.max_steps",)),
    "lr_scheduler_type": _SCHEDULE,
    "lr_scheduler": _SCHEDULE,
    "scheduler": _SCHEDULE,
    "warmup_ratio": Ours(("train.warmup_fraction",)),
    "warmup_steps": _WARMUP_STEPS,
    "num_warmup_steps": _WARMUP_STEPS,
    "optim": Ours(("train.optimizer",), "adamw, adamw_8bit, adafactor or sgd"),
    "adam_beta1": Ours(("train.beta1",)),
    "adam_beta2": Ours(("train.beta2",)),
    "adam_epsilon": _NOT_THERE,
    "max_grad_norm": Ours(("train.max_gradient_norm",)),
    "gradient_clipping": Ours(("train.max_gradient_norm",)),
    "sample_packing": Ours(("train.packing",), "auto, always or never; packed rows cannot see each other"),
    "eval_sample_packing": Ours(("train.packing",)),
    "neat_packing": Ours(("train.packing",)),
    "gradient_checkpointing": Ours(("train.activation_checkpointing",)),
    "eval_steps": Ours(("train.valid_every_steps",)),
    "evals_per_epoch": Ours(("train.valid_every_steps",)),
    "eval_strategy": Ours(("train.valid_every_steps",), "a number of steps"),
    "evaluation_strategy": Ours(("train.valid_every_steps",), "a number of steps"),
    "save_steps": Ours(("train.save_every_steps",)),
    "saves_per_epoch": Ours(("train.save_every_steps",)),
    "save_strategy": Ours(("train.save_every_steps",), "a number of steps"),
    "save_total_limit": Ours(("train.keep_checkpoints",)),
    "metric_for_best_model": _BEST,
    "load_best_model_at_end": _BEST,
    "early_stopping_patience": _BEST,
    "logging_steps": _EVERY_STEP,
    "resume_from_checkpoint": _RESUME,
    "auto_resume_from_checkpoints": _RESUME,
    "group_by_length": _AUTOMATIC,
    "dataloader_num_workers": _AUTOMATIC,
    "preprocessing_num_workers": _AUTOMATIC,
    "dataset_num_proc": _AUTOMATIC,
    "use_liger_kernel": _AUTOMATIC,
    "torch_compile": _AUTOMATIC,
    "neftune_noise_alpha": _NOT_THERE,
    "label_smoothing_factor": _NOT_THERE,
    "random_state": Ours(("seed",)),
    "data_seed": Ours(("seed",)),
    # Evaluation
    "compute_metrics": Ours(("evaluate.metrics",), "a name, or a function of your own as `module:function`"),
    "predict_with_generate": Ours(("evaluate.metrics",), "test rows are always answered by generation"),
    "generation_max_length": Ours(("evaluate.max_new_tokens",)),
    "max_new_token": Ours(("evaluate.max_new_tokens",)),
    "generation_num_beams": Ours(("evaluate.beams",)),
    "num_beams": Ours(("evaluate.beams",)),
    "temperature": _GREEDY,
    "top_p": _GREEDY,
    "top_k": _GREEDY,
    "do_sample": _GREEDY,
    # Where it runs and where it goes
    "output_dir": _OUT,
    "out_dir": _OUT,
    "save_dir": _OUT,
    "overwrite_output_dir": _OUT,
    "run_name": Ours(("name",)),
    "experiment_name": Ours(("name",)),
    "report_to": _TRACK,
    "wandb_project": _TRACK,
    "wandb_entity": _TRACK,
    "use_wandb": _TRACK,
    "mlflow_tracking_uri": _TRACK,
    "deepspeed": _SHARDING,
    "fsdp": _SHARDING,
    "fsdp_config": _SHARDING,
    "num_gpus": Ours(("launch.processes", "launch.gpus_per_node"), "with `launch.on: torchrun`, or of Slurm"),
    "num_processes": Ours(("launch.processes",), "with `launch.on: torchrun`"),
    "nproc_per_node": Ours(("launch.processes",), "with `launch.on: torchrun`"),
    "push_to_hub": Ours(("promote.model",), "a model that is better goes to the registry"),
    "hub_model_id": Ours(("promote.model",), "a model that is better goes to the registry"),
    "rl": Ours((), "preference training (DPO and such) is not supported yet"),
}


def ours_for(path: tuple[str | int, ...]) -> str | None:
    """Return what to write instead of another tool's key at `path`, or None if it is no such word."""
    names = [str(part).replace("-", "_").lower() for part in path if not isinstance(part, int)]
    found = WORDS.get(".".join(names[-2:])) or WORDS.get(names[-1]) if names else None
    if found is None:
        return None
    keys = " and ".join(f"`{key}`" for key in found.keys)
    return "; ".join(part for part in (f"here it is {keys}" if keys else "", found.note) if part)
