"""A folder as users of transformers and peft open it: by their own loaders, and by nothing of tunesmith's."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tunesmith.core.errors import TunesmithError
from tunesmith.engines.base import EngineAnswer, Ids, Messages

_BATCH_ROWS = 16


class TransformersFolder:
    """A model or an adapter in this process, computed in fp32 on the CPU.

    Args:
        folder: a folder of `save_pretrained`: a model, or an adapter.
        base: the model below the adapter; default the one that its `adapter_config.json` names.

    Raises:
        TunesmithError: transformers or peft cannot open the folder.
    """

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        self._lock = threading.Lock()  # fast tokenizers refuse to be used by two threads at once
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = _open(folder, base).eval()
        except Exception as error:  # from any layer of two libraries; the proof reports that outsiders fail like this
            message = f"cannot be opened by transformers: {type(error).__name__}: {error}"
            raise TunesmithError(message, where=str(folder), code="engine-failed") from error
        self._eos = _eos_ids(self._model.generation_config.eos_token_id)

    @property
    def name(self) -> str:
        """The version of transformers."""
        return f"transformers {transformers.__version__}"

    def encode(self, text: str, *, add_special: bool = False) -> list[int] | None:
        """Return the ids of a text."""
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=add_special)["input_ids"])

    def encode_chat(self, messages: Messages) -> list[int] | None:
        """Return the ids of what the chat template renders; none if the folder has no template."""
        if not self._tokenizer.chat_template:
            return []
        with self._lock:
            prompt = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
            )
            return list(self._tokenizer(prompt, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def token_scores(self, prompt: Ids, answer: Ids, top: int) -> list[Mapping[int, float]] | None:
        """Return the log-probabilities of one forward pass over prompt and answer, `top + 1` or `top` per token."""
        if self._model.config.is_encoder_decoder:
            start = self._model.generation_config.decoder_start_token_id
            inputs = {"input_ids": _row(prompt), "decoder_input_ids": _row([start, *answer[:-1]])}
        else:
            inputs = {"input_ids": _row([*prompt, *answer[:-1]])}
        with self._lock:
            logits = self._model(**inputs).logits[0, -len(answer) :].float()
        scores = torch.log_softmax(logits, dim=-1)
        values, ids = scores.topk(min(top, scores.shape[-1]))
        own = scores.gather(1, _row(answer).T)
        return [
            dict(zip(most.tolist(), likely.tolist(), strict=True)) | {token: float(score)}
            for most, likely, token, score in zip(ids, values, answer, own, strict=True)
        ]

    def answer(self, prompt: Ids, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return the answer of `generate`, with the folder's own generation settings but without sampling."""
        [(_, answer)] = self.answers([prompt], max_new_tokens=max_new_tokens)
        return answer

    def answers(self, prompts: Sequence[Ids], *, max_new_tokens: int) -> Iterator[tuple[int, EngineAnswer]]:
        """Yield the answers of `generate` in padded batches of prompts of about one length."""
        places = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        for first in range(0, len(places), _BATCH_ROWS):
            batch = places[first : first + _BATCH_ROWS]
            with self._lock:
                answers = self._generate([prompts[place] for place in batch], max_new_tokens)
            yield from zip(batch, answers, strict=True)

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Ids], max_new_tokens: int) -> list[EngineAnswer]:
        is_encoder_decoder = self._model.config.is_encoder_decoder
        rows = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts]
        pad = partial(pad_sequence, batch_first=True, padding_side="right" if is_encoder_decoder else "left")
        ids, mask = pad(rows), pad([torch.ones_like(row) for row in rows])
        out = self._model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens
        )  # fmt: skip
        start = 1 if is_encoder_decoder else ids.shape[1]
        return [self._answer(row) for row in out[:, start:].tolist()]

    def _answer(self, ids: list[int]) -> EngineAnswer:
        end = next((place for place, token in enumerate(ids) if token in self._eos), None)
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
        return EngineAnswer(text, tuple(ids[:end]), end is not None)

    def answer_chat(self, messages: Messages, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return the answer to the prompt that the chat template renders."""
        prompt = self.encode_chat(messages)
        return self.answer(prompt, max_new_tokens=max_new_tokens) if prompt else None

    def close(self) -> None:
        """Free the weights."""
        del self._model


def _open(folder: Path, base: Path | None) -> Any:
    """Open a model, or an adapter on its base, in fp32, from safetensors only."""
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    if not (folder / "adapter_config.json").exists():
        return _model_class(folder).from_pretrained(folder, **options)
    from peft import PeftConfig, PeftModel

    root = base or Path(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
    return PeftModel.from_pretrained(_model_class(root).from_pretrained(root, **options), str(folder))


def _model_class(folder: Path) -> Any:
    is_seq2seq = AutoConfig.from_pretrained(folder, local_files_only=True).is_encoder_decoder
    return AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM


def _eos_ids(setting: int | list[int] | None) -> frozenset[int]:
    return frozenset(setting) if isinstance(setting, list) else frozenset(() if setting is None else (setting,))


def _row(ids: Ids) -> torch.Tensor:
    return torch.tensor([list(ids)], dtype=torch.long)
