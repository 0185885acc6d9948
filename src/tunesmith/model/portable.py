"""Let older versions of transformers, and programs that read only its files, open a saved model.

transformers 5 writes the frequencies of rotary embeddings as `rope_parameters`, and a tokenizer class that is new.
Version 4 knows neither: it opens the model with the default `rope_theta` and without a warning, and its tokenizer
not at all. So both forms are written; version 5 reads them as the same.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.core.files import read_json, write_json

_CONFIG, _TOKENIZER, _GENERATION = "config.json", "tokenizer_config.json", "generation_config.json"
# Attention types of models with two frequencies, and version 4's key for the one of the other type (Gemma 3).
_GLOBAL, _LOCAL, _LOCAL_THETA = "full_attention", "sliding_attention", "rope_local_base_freq"
_IN_ROPE_SCALING = ("rope_theta", "partial_rotary_factor")  # of `rope_parameters`, not in version 4's `rope_scaling`
_OTHER_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
_SAMPLING = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_beams", "num_beam_groups", "diversity_penalty",
    "penalty_alpha",
)  # fmt: skip


def make_portable(folder: Path) -> None:
    """Add the keys of other versions to a saved model or adapter with its tokenizer; leave out the base's sampling.

    Servers apply the sampling of `generation_config.json` to every request that has none, so they would answer
    otherwise than the evaluated model, which follows the recipe.
    """
    if (folder / _CONFIG).exists():
        config = read_json(folder / _CONFIG)
        for section in (config, config.get("text_config")):
            if isinstance(section, dict):
                section |= dict(_older_keys(section))
        write_json(folder / _CONFIG, config)
    settings = read_json(folder / _TOKENIZER)
    write_json(folder / _TOKENIZER, _older_tokenizer(settings, folder / "chat_template.jinja"))
    if (folder / _GENERATION).exists():
        generation = read_json(folder / _GENERATION)
        write_json(folder / _GENERATION, {key: value for key, value in generation.items() if key not in _SAMPLING})


def _older_keys(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys under which version 4 looks for the precision and the frequencies."""
    if "dtype" in config:
        yield "torch_dtype", config["dtype"]
    rope = config.get("rope_parameters") or {}
    if isinstance(rope.get(_LOCAL), dict):
        yield _LOCAL_THETA, rope[_LOCAL]["rope_theta"]
    if isinstance(rope.get(_GLOBAL), dict):
        rope = rope[_GLOBAL]
    names = _OTHER_NAMES.get(config.get("model_type", ""), {})
    for key in _IN_ROPE_SCALING:
        if key in rope:
            yield names.get(key, key), rope[key]
    if rope.get("rope_type", "default") != "default":
        yield "rope_scaling", {key: value for key, value in rope.items() if key not in _IN_ROPE_SCALING}


def _older_tokenizer(settings: dict[str, Any], template: Path) -> dict[str, Any]:
    """Return a tokenizer's settings with a class, special tokens and a chat template that version 4 reads."""
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if template.exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    return settings
