"""Tiny tokenizers and random models of many architectures; each takes a second to make."""

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like the templates of reasoning models: only the last turn keeps its thoughts.
THINKING = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = [f"Say {a} and {b}, then {c}." for a in ("one", "two", "red") for b in ("blue", "cat") for c in ("dog", "go")]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: two are slower for tiny models, and much slower on busy cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_tokenizer(
    template: str | None = CHATML,
    *,
    markup: Sequence[str] = ("<think>", "</think>"),
    specials: Sequence[str] = SPECIALS,
) -> Any:
    """Return a byte-level BPE tokenizer of about 300 tokens. The last of `specials` is pad and eos."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in markup])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=specials[-1], pad_token=specials[-1])
    made.chat_template = template
    return made


def config(kind: str, **changes: Any) -> Any:
    """Return the configuration of a random two-layer model of an architecture; `changes` are of its settings."""
    from transformers import AutoConfig

    common = {"vocab_size": 320, "pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 0}
    llama = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    }  # fmt: skip
    special: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, **_no_dropout("resid", "embd", "attn")},
        "gpt_neo": {
            "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 512,
            "attention_types": [[["global", "local"], 1]], "window_size": 16,
            "attention_dropout": 0.0, "embed_dropout": 0.0, "resid_dropout": 0.0,
        },
        "gemma2": {**llama, "sliding_window": 16, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 10.0,
                   "query_pre_attn_scalar": 8},
        "gemma3_text": {**llama, "sliding_window": 16, "query_pre_attn_scalar": 8},
        "mistral": {**llama, "sliding_window": 16},
        "phi3": {**{k: v for k, v in llama.items() if k != "head_dim"}, **_no_dropout("resid", "embd")},
        "gpt_neox": {k: v for k, v in llama.items() if k not in ("num_key_value_heads", "head_dim")},
        "granite": {**llama, "logits_scaling": 3.0},
        "phi": {**{k: v for k, v in llama.items() if k != "head_dim"}, **_no_dropout("resid", "embd"),
                "partial_rotary_factor": 0.5},
    }  # fmt: skip
    return AutoConfig.for_model(kind, **{**common, **special.get(kind, llama), **changes})


def _no_dropout(*names: str) -> dict[str, float]:
    return {f"{name}_pdrop": 0.0 for name in names}


def save_plain_model(folder: Path, kind: str, *, spare_rows: int = 0) -> Path:
    """Write a random model with one control token, no chat template, and `spare_rows` unused embeddings."""
    made = make_tokenizer(None, specials=["<|endoftext|>"])
    shape = config(kind)
    shape.vocab_size, shape.bos_token_id, shape.eos_token_id, shape.pad_token_id = len(made) + spare_rows, 0, 0, 0
    return _saved(folder, shape, made, seed=0)


def save_model(folder: Path, kind: str, *, template: str | None = CHATML, seed: int = 0, **changes: Any) -> Path:
    """Write a random model and its tokenizer to a folder with `save_pretrained`; return the folder.

    Args:
        changes: settings of the model's configuration.
    """
    return _saved(folder, config(kind, **changes), make_tokenizer(template), seed=seed)


def _saved(folder: Path, shape: Any, made: Any, *, seed: int) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "norm" not in name:
                weight.normal_(0, 0.15)  # the values of transformers are so small that all models answer alike
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def change_weights(folder: Path, edit: Callable[[str, Any], Any]) -> None:
    """Replace each tensor of a folder with one file of weights by `edit(name, tensor)`."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    changed = {name: edit(name, tensor).detach().contiguous() for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def write_rows(path: Path, count: int = 60) -> Path:
    """Write rows {question, answer, tree}, with answers by a rule that a tiny model can learn."""
    words = ["one", "two", "red", "blue", "cat", "dog"]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            first, second = words[i % 6], words[(i // 6) % 6]
            row = {"question": f"Say {first} and {second}, number {i}.", "answer": f"{second} {first}", "tree": i // 3}
            file.write(json.dumps(row) + "\n")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Return {path: content} of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state() -> dict[str, tuple[int, bytes]]:
    """Return {path: (mode, content)} of every file, folder and link below the current folder."""
    found = {}
    for folder, folders, files in os.walk("."):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            content = os.fsencode(path.readlink()) if stat.S_ISLNK(mode) else b""
            found[str(path)] = mode, path.read_bytes() if stat.S_ISREG(mode) else content
    return found


def recipe(folder: Path, model: Path, /, **changes: Any) -> Path:
    """Write a recipe for a tiny model and the rows of `write_rows`; `changes` replace whole sections."""
    from ruamel.yaml import YAML

    sections: dict[str, Any] = {
        "name": "tiny",
        "model": {"base": str(model), "precision": "fp32"},
        "data": {
            "source": {"file": write_rows(folder / "rows.jsonl").name}, "task": "chat", "prompt": "{question}",
            "response": "{answer}", "split": {"valid": 0.15, "test": 0.2},
        },
        "tuning": {"method": "lora", "rank": 4, "alpha": 8},
        "train": {"learning_rate": 0.01, "epochs": 2, "examples_per_step": 8},
        "evaluate": {"metrics": ["rougeL", "exact_match"], "primary": "rougeL", "rows": 8, "max_new_tokens": 8},
        **changes,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump({key: value for key, value in sections.items() if value is not None}, file)
    return path


def seq2seq_tokenizer(kind: str = "t5") -> Any:
    """Return a tokenizer like that of T5 (unigrams without line breaks, `text </s>`) or of BART.

    The control tokens of T5 are <pad> 0, </s> 1, <unk> 2; those of BART <s> 0, <pad> 1, </s> 2 (`<s> text </s>`).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if kind in _LIKE_T5:
        specials, names = ["<pad>", "</s>", "<unk>", "<extra_id_0>"], {}
        letters = "\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'#\"()-"
        words = [f"\u2581{word}" for word in (*NUMBERS, *range(10), "Say", "and", "then")]
        pieces = [*((text, 0.0) for text in specials), *((text, -2.0) for text in words), *((c, -9.0) for c in letters)]
        backend = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        backend.decoder = decoders.Metaspace()
        single = "$A </s>"
    else:
        specials, names = ["<s>", "<pad>", "</s>", "<unk>"], {"bos_token": "<s>"}
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(CORPUS, trainer)
        single = "<s> $A </s>"
    backend.add_special_tokens(specials)
    ids = [(text, backend.token_to_id(text)) for text in specials]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **names
    )


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LIKE_T5 = ("t5", "flan-t5", "mt5", "umt5")
SEQ2SEQ = (*_LIKE_T5, "bart", "mbart", "pegasus", "marian", "m2m_100")


def seq2seq_config(kind: str, **changes: Any) -> Any:
    """Return the configuration of a two-layer encoder-decoder model without dropout."""
    from transformers import AutoConfig

    if kind in _LIKE_T5:
        t5_settings = {
            "vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
            "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
        }  # fmt: skip
        gated = {} if kind == "t5" else {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        return AutoConfig.for_model("t5" if kind == "flan-t5" else kind, **{**t5_settings, **gated, **changes})
    bart_settings = {
        "vocab_size": 320, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128,
        "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "bos_token_id": 0, "pad_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    }  # fmt: skip
    return AutoConfig.for_model(kind, **{**bart_settings, **changes})


def save_seq2seq(folder: Path, kind: str = "t5", *, seed: int = 0, fresh: bool = False, **changes: Any) -> Path:
    """Write a random encoder-decoder model and its tokenizer to a folder; return the folder.

    Args:
        fresh: keep the initial weights of transformers, which train well but give nearly the same answer to everything.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(seq2seq_config(kind, **changes), dtype=torch.float32)
    if not fresh:
        if kind in _LIKE_T5 and kind != "t5":  # they have a separate output layer
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim >= 2 and "norm" not in name:
                    weight.normal_(0, 0.15)
    model.save_pretrained(folder)
    seq2seq_tokenizer(kind).save_pretrained(folder)
    return folder


def write_numbers(path: Path, count: int) -> Path:
    """Write rows {question, answer} such as "4 7 2" and "four seven two", three or four digits long."""
    import random

    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            digits = [generator.randrange(10) for _ in range(generator.randint(3, 4))]
            row = {"question": " ".join(map(str, digits)), "answer": " ".join(NUMBERS[digit] for digit in digits)}
            file.write(json.dumps(row) + "\n")
    return path
