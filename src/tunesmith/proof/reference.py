"""The answers and log-probabilities that an engine is compared with: our own, in fp32, on the base as trained.

They are made once for a model and its questions, and kept in the cache. An interrupted reference is continued.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import tunesmith
from tunesmith.core import interrupt
from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import MANIFEST, check_folder, digest_of, remove_folder, seal_folder
from tunesmith.core.jsonl import read_jsonl, write_jsonl
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.user_folders import cache_root
from tunesmith.evaluate.model_outputs import generate_answers
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.inference.decoding import forward_parameters
from tunesmith.model.adapters import open_model
from tunesmith.model.load import ComputeConfig
from tunesmith.model.memory import free_memory
from tunesmith.model.quantization import trained_quantization
from tunesmith.proof.distributions import Scores
from tunesmith.proof.questions import Questions

TOP = 20
"""The number of most probable tokens that are compared: as many as vLLM gives without a setting."""

SCORED_TOKENS = 160
"""The number of tokens of answers whose distributions are compared; some servers need a request for each."""

_FORMAT = 1  # of the files in the cache


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """An answer in fp32.

    Attributes:
        prompt: the ids of the prompt.
        line: the answer as `predict` gives it.
    """

    prompt: tuple[int, ...]
    line: Mapping[str, Any]

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the answer, without the token that ended it."""
        return tuple(self.line["ids"])

    @property
    def stopped(self) -> bool:
        """Whether the answer ended before the limit."""
        return bool(self.line["stopped"])

    @property
    def text(self) -> str:
        """The answer as it is scored."""
        return str(self.line["prediction"])


class Reference:
    """The reference of one model, made if the cache does not have it.

    Attributes:
        answers: one answer to each prompt.
        scored: the answers whose tokens have log-probabilities, by their place; those of the stop token follow them.
        folder: the folder with `generations.jsonl`, sealed.
        model_digest: the digest of the model.
        quantization: that of the base on which the model was trained, if it is an adapter on a quantized one.
        versions: the versions of the packages that computed it.
    """

    def __init__(self, model: ModelFolder, questions: Questions) -> None:
        self._model_folder, self._questions = model, questions
        self._loaded: Any = None
        prompts = questions.prompts
        self.model_digest, self.quantization = model.digest(), trained_quantization(model)
        self.versions = {
            "tunesmith": tunesmith.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        }  # fmt: skip
        made_from = (self.model_digest, prompts.digest, str(self.quantization))
        key = digest_of([*made_from, *self.versions.values(), TOP, SCORED_TOKENS, _FORMAT])
        self.folder = cache_root() / "proofs" / key[:32]
        if not _is_complete(self.folder):
            with exclusive_lock(self.folder.with_suffix(".lock"), wait=True):
                if not _is_complete(self.folder):
                    self._make(key)
        self.answers = self._in_order(list(read_jsonl(self.folder / "generations.jsonl")))
        self.scored: dict[int, list[Scores]] = {
            line["place"]: [{int(token): score for token, score in scores.items()} for scores in line["scores"]]
            for line in read_jsonl(self.folder / "token_scores.jsonl")
        }

    @property
    def conditions(self) -> dict[str, str | None]:
        """How the answers were computed, for the record of the proof."""
        return {"precision": "fp32", "base_quantization": str(self.quantization) if self.quantization else None}

    def scores_of(self, places: Iterable[int]) -> list[Scores]:
        """Return the log-probabilities at the tokens of some scored answers, one answer after the other."""
        return [scores for place in places for scores in self.scored[place]]

    def answer_with_end(self, place: int) -> tuple[int, ...]:
        """Return the ids of an answer with the token that ended it, if one did."""
        answer = self.answers[place]
        strings = self._questions.prompts.stop_strings
        if not answer.stopped or (strings is not None and strings.completed_by_last(answer.ids)):
            return answer.ids
        return (*answer.ids, self._questions.task.stop_ids[0])

    def token_scores(self, place: int, answer: Sequence[int]) -> list[Scores]:
        """Return the log-probabilities at each token of an answer to a prompt: the `TOP` highest and its own."""
        return token_scores(self._load(), self.answers[place].prompt, answer)

    def close(self) -> None:
        """Free the weights."""
        self._loaded = None
        free_memory()

    def _in_order(self, lines: Sequence[Mapping[str, Any]]) -> tuple[ReferenceAnswer, ...]:
        """Return the answers in the order of the prompts; the file has them in the order in which they finished."""
        by_id, prompts = {line["id"]: line for line in lines}, self._questions.prompts
        pairs = zip(prompts.examples, prompts.prompts, strict=True)
        return tuple(ReferenceAnswer(prompt, by_id[example.id]) for example, prompt in pairs)

    def _load(self) -> Any:
        if self._loaded is None:
            self._loaded = open_in_fp32(self._model_folder)
        return self._loaded

    def _make(self, key: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        questions, model = self._questions, self._load()
        lines, _ = generate_answers(
            "the reference in fp32", model, questions.prompts, questions.task, self.folder, key=key
        )
        self.answers = self._in_order(lines)
        scored, tokens = [], 0
        for place, answer in enumerate(self.answers):
            ids = self.answer_with_end(place)
            if model.config.is_encoder_decoder or tokens >= SCORED_TOKENS:
                break
            if not ids or answer.line["error"]:
                continue
            interrupt.check()
            ids = ids[: SCORED_TOKENS - tokens]
            tokens += len(ids)
            scored.append({"place": place, "scores": self.token_scores(place, ids)})
        write_jsonl(self.folder / "token_scores.jsonl", scored)
        seal_folder(self.folder, model=self.model_digest)
        self.close()


def _is_complete(folder: Path) -> bool:
    """Return whether a reference is finished and unchanged; remove the seal of a damaged one, so it is made again."""
    try:
        return (folder / MANIFEST).exists() and bool(check_folder(folder))
    except DamagedFile:
        remove_folder(folder)
        return False


def open_in_fp32(model: ModelFolder, *, merged: bool = False) -> Any:
    """Load a model in fp32, on a GPU if there is one.

    Args:
        merged: merge adapters into the weights of the base's files, even if they were trained on quantized weights.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return open_model(model, ComputeConfig(device, torch.float32), merged=merged).eval()


@torch.inference_mode()
def token_scores(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[Scores]:
    """Return the log-probabilities at each token of an answer to a prompt: the `TOP` highest and its own."""
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    keep = {"logits_to_keep": len(answer)} if "logits_to_keep" in forward_parameters(model) else {}
    logits = model(input_ids=ids, **keep).logits[0, -len(answer) :]
    scores = torch.log_softmax(logits.double(), dim=-1)
    values, tokens = scores.topk(min(TOP, scores.shape[-1]))
    return [
        dict(zip(most.tolist(), likely.tolist(), strict=True)) | {token: float(row[token])}
        for most, likely, token, row in zip(tokens, values, answer, scores, strict=True)
    ]
