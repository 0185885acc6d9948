"""Hints for unknown keys: settings of TRL, transformers, Axolotl and LLaMA-Factory, and tunesmith's former keys."""

from typing import NamedTuple


class Replacement(NamedTuple):
    """The keys of a recipe to use instead of another tool's setting, and a note on the difference."""

    keys: tuple[str, ...]
    note: str = ""


# (settings of other tools, keys of a recipe, note on the difference or on what to do)
REPLACEMENTS = (
    # The model
    ("base_model model_name_or_path model_name model_id model_path pretrained_model_name_or_path", "model.base", ""),
    ("adapter_name_or_path lora_model_dir", "model.base", "give the adapter as the base, to continue its training"),
    ("model_revision", "model.base", "write `org/name@revision`"),
    ("bf16 fp16 tf32 torch_dtype dtype pure_bf16 bnb_4bit_compute_dtype compute_dtype",
     "model.precision", "`auto` is bf16 if the hardware supports it"),
    ("attn_implementation flash_attn flash_attention use_flash_attention_2", "model.attention", ""),
    ("chat_template template", "model.chat_markup",
     "the model's own chat template is used; `chat_markup: chatml` adds one to a model that has none"),
    ("chat_template_kwargs chat_template_args apply_chat_template_kwargs enable_thinking",
     "data.template_arguments", "such as `template_arguments: {enable_thinking: false}`"),
    ("tokens add_tokens add_special_tokens new_special_tokens new_special_tokens_config "
     "additional_special_tokens added_tokens_overrides",
     "model.add_tokens", "a list, or each token with the text that its row starts from"),
    ("special_tokens eot_tokens", "model.add_tokens",
     "it adds tokens; those that begin and end a text or a turn are the model's own"),
    ("resize_vocab init_special_tokens resize_token_embeddings_to_32x shrink_embeddings", "",
     "the embedding grows with `model.add_tokens` if it needs to; remove the key"),
    ("trust_remote_code", "", "code from a model's repository is never run; remove the key"),
    # Data
    ("dataset datasets dataset_name dataset_path dataset_dir train_file train_dataset",
     "data.source", "write `{file: rows.jsonl}` or `{hub: org/name}`"),
    ("data_files", "data.source.file", ""),
    ("dataset_config", "data.source.config", ""),
    ("dataset_text_field text_column text_field", "data.text", ""),
    ("test_dataset test_file", "data.test",
     "write `{file: test.jsonl}` or `{hub: org/name, split: test}`"),
    ("eval_dataset test_datasets val_dataset validation_file valid_file data.validation", "data.valid",
     "write `{file: valid.jsonl}` or `{hub: org/name, split: validation}`"),
    ("val_set_size val_size validation_split", "data.valid", "`data.test` sets test rows aside"),
    ("test_size", "data.test", ""),
    ("max_samples max_train_samples", "data.train_rows", ""),
    ("max_eval_samples", "evaluate.rows", ""),
    ("max_length max_seq_length max_seq_len cutoff_len sequence_len model_max_length block_size max_source_length "
     "max_prompt_length",
     "data.max_tokens_per_example", "`data.too_long` decides about longer rows"),
    ("max_target_length", "data.max_target_tokens", ""),
    ("truncation", "data.too_long", ""),
    ("conversations messages_column field_messages", "data.messages", "a column of {role, content} or {from, value}"),
    ("message_property_mappings message_field_role message_field_content role_tag content_tag", "data.messages",
     "its messages may have `role` or `from`, and `content`, `value` or `text`; remove the key"),
    ("role_mapping user_tag assistant_tag observation_tag system_tag", "data.roles", "as {name in the rows: user}"),
    ("prompt_template", "data.prompt", ""),
    ("prompt_column instruction", "data.prompt", "a template with columns in braces"),
    ("completion output response_column", "data.response", "a template with columns in braces"),
    ("system_prompt default_system", "data.system", ""),
    ("formatting", "data.task", "text, completion, chat or seq2seq"),
    ("stage", "data.task", "text for pretraining; completion, chat or seq2seq for supervised fine-tuning"),
    ("train_on_inputs train_on_prompt mask_history completion_only_loss assistant_only_loss roles_to_train",
     "data.train_on", "only answers are trained on; in conversations, `train_on` selects all of them or the last"),
    ("train_on_eos train_on_eot", "data.train_on_end", "true (the default) or false"),
    ("split_thinking reasoning_content field_thinking", "data.reasoning", "keep, strip or mask"),
    ("tools tools_column field_tools", "data.tools", "a column, or one list for all rows"),
    # Tuning
    ("adapter finetuning_type use_peft lora qlora", "tuning.method", "full, lora or qlora"),
    ("load_in_4bit quantization_bit", "tuning.method tuning.bits", "write `tuning: {method: qlora, bits: 4}`"),
    ("load_in_8bit", "tuning.method tuning.bits", "write `tuning: {method: qlora, bits: 8}`"),
    ("bnb_4bit_quant_type", "tuning.quantization", "for `method: qlora`"),
    ("bnb_4bit_use_double_quant", "tuning.double_quantization", "for `method: qlora`"),
    ("lora_r lora_rank r", "tuning.rank", ""),
    ("lora_alpha", "tuning.alpha", ""),
    ("lora_dropout", "tuning.dropout", ""),
    ("lora_target lora_target_modules lora_target_linear target_modules", "tuning.target", "default `all-linear`"),
    ("use_rslora", "tuning.rslora", ""),
    ("use_dora", "tuning.dora", ""),
    ("freeze_modules freeze_layers freeze_trainable_modules freeze_trainable_layers unfrozen_parameters",
     "tuning.freeze", "the modules to freeze, such as `embed_tokens` or `layers.0-11`, with `method: full`"),
    ("modules_to_save lora_modules_to_save lora_bias adam_epsilon muon_momentum neftune_noise_alpha "
     "label_smoothing_factor",
     "", "tunesmith has no such setting; remove the key"),
    # Training
    ("lr max_lr", "train.learning_rate", ""),
    ("batch_size train_batch_size per_device_train_batch_size per_device_batch_size micro_batch_size",
     "train.examples_per_step train.micro_batch",
     "the batch of one optimizer step over all devices, and the part of it in one forward pass (default automatic)"),
    ("global_batch_size gradient_accumulation_steps grad_accum", "train.examples_per_step",
     "the batch of one optimizer step; gradient accumulation follows from it and from the memory"),
    ("per_device_eval_batch_size eval_batch_size group_by_length dataloader_num_workers preprocessing_num_workers "
     "dataset_num_proc use_liger_kernel torch_compile",
     "", "chosen automatically, and affects only speed; remove the key"),
    ("num_train_epochs num_epochs n_epochs", "train.epochs", ""),
    ("max_train_steps num_steps", "train.max_steps", ""),
    ("lr_scheduler_type lr_scheduler scheduler", "train.schedule", ""),
    ("warmup_ratio warmup_steps num_warmup_steps", "train.warmup_fraction", "a fraction of all steps, not a number"),
    ("optim", "train.optimizer", "adamw, adamw_8bit, adafactor, muon or sgd"),
    ("use_muon", "train.optimizer", "write `muon`"),
    ("adam_beta1", "train.beta1", ""),
    ("adam_beta2", "train.beta2", ""),
    ("max_grad_norm gradient_clipping", "train.max_gradient_norm", ""),
    ("sample_packing eval_sample_packing neat_packing",
     "train.packing", "auto, always or never; packed rows do not attend to each other"),
    ("gradient_checkpointing", "train.activation_checkpointing", ""),
    ("eval_steps evals_per_epoch eval_strategy evaluation_strategy", "train.valid_every_steps", "a number of steps"),
    ("save_steps saves_per_epoch save_strategy", "train.save_every_steps", "a number of steps"),
    ("save_total_limit", "train.keep_checkpoints", ""),
    ("metric_for_best_model load_best_model_at_end",
     "train.select_best_by", "the best checkpoint is always kept, and becomes the tuned model"),
    ("early_stopping_patience early_stopping_steps", "train.stop_early",
     "`after_validations` and `min_change`, measured by `train.select_best_by`"),
    ("logging_steps", "", "every step is logged to train/metrics.jsonl; remove the key"),
    ("resume_from_checkpoint auto_resume_from_checkpoints", "", "repeating the command resumes a run; remove the key"),
    ("random_state data_seed", "seed", ""),
    # Evaluation
    ("compute_metrics", "evaluate.metrics", "a name, or `module:function` for a function of yours"),
    ("predict_with_generate", "evaluate.metrics", "answers to test rows are always generated"),
    ("generation_max_length max_new_token", "evaluate.max_new_tokens", ""),
    ("generation_num_beams num_beams", "evaluate.beams", ""),
    ("temperature", "evaluate.sampling.temperature", "0 is greedy, the default"),
    ("do_sample", "evaluate.sampling.temperature", "0 is greedy, the default; above 0, answers are sampled"),
    ("num_return_sequences num_samples", "evaluate.samples", "with evaluate.sampling"),
    ("top_p", "evaluate.sampling.top_p", ""),
    ("top_k", "evaluate.sampling.top_k", ""),
    ("min_p", "evaluate.sampling.min_p", ""),
    ("repetition_penalty", "evaluate.sampling.repetition_penalty", ""),
    ("stop_strings stop_sequences", "evaluate.stop", "a list of texts"),
    # Launching and output
    ("output_dir out_dir save_dir overwrite_output_dir", "", "the run's folder is runs/NAME/ID; `--out` sets another"),
    ("run_name experiment_name", "name", ""),
    ("report_to wandb_project wandb_entity use_wandb mlflow_tracking_uri", "trackers", "a list, such as `[mlflow]`"),
    ("deepspeed fsdp fsdp_config", "launch.sharding", "FSDP2; `auto` shards if one device has too little memory"),
    ("num_gpus", "launch.processes launch.gpus_per_node", "`processes` with torchrun, `gpus_per_node` with Slurm"),
    ("num_processes nproc_per_node", "launch.processes", "with `launch.on: torchrun`"),
    ("push_to_hub hub_model_id", "promote.model", "a model that is better than its base is promoted to the registry"),
    ("rl", "", "preference training (such as DPO) is not supported yet"),
    # Former names of our own keys
    ("near_copy", "data.near_duplicate_threshold", ""),
    ("prompt_tokens", "data.sample_prefix_tokens", ""),
    ("choose_by", "train.select_best_by", ""),
    ("starter", "launch.launcher", ""),
    ("patience_minutes", "launch.timeout_minutes", ""),
    ("warning_minutes", "launch.grace_minutes", ""),
    ("link_gb_per_second", "launch.intra_node_gb_per_second", ""),
    ("network_gb_per_second", "launch.inter_node_gb_per_second", ""),
    ("track", "trackers", ""),
)  # fmt: skip

# Former values of our own keys: (key, former value) -> value.
_VALUES = {("data.too_long", "cut"): "truncate", ("data.leakage", "stop"): "error"}

BY_KEY = {name: Replacement(tuple(keys.split()), note) for names, keys, note in REPLACEMENTS for name in names.split()}


def replacement_for(path: tuple[str | int, ...]) -> str | None:
    """Return what to write instead of another tool's setting at `path`; None if the key is not in the table."""
    names = [str(part).replace("-", "_").lower() for part in path if not isinstance(part, int)]
    replacement = BY_KEY.get(".".join(names[-2:])) or BY_KEY.get(names[-1]) if names else None
    if replacement is None:
        return None
    keys = " and ".join(f"`{key}`" for key in replacement.keys)
    return "; ".join(part for part in (f"use {keys}" if keys else "", replacement.note) if part)


def renamed_value(path: tuple[str | int, ...], value: str) -> str | None:
    """Return the present name of a former value of the key at `path`; None if it is not one."""
    return _VALUES.get((".".join(map(str, path)), value))
