"""A model that answers by the same prompt and generation as in training and evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.records import Example, Turn
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.inference.predict import predict
from tunesmith.inference.prompts import Prompts
from tunesmith.inference.recorded import RecordedOptions, recorded_options
from tunesmith.inference.request import StopStrings
from tunesmith.inference.sampling import GREEDY, Sampling, refuse_contradictions, seed_samples
from tunesmith.model.adapter_set import AdapterSet
from tunesmith.model.adapters import open_model
from tunesmith.model.load import ComputeConfig, choose_compute, max_positions
from tunesmith.model.quantization import trained_quantization
from tunesmith.recipe.columns import optional_columns
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import ChatData, CompletionData, Data, Seq2SeqData, TextData
from tunesmith.recipe.template import columns_in
from tunesmith.tasks import task_for
from tunesmith.tasks.base import MissingColumn, RowProblem, Task
from tunesmith.tasks.chatml import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

_MAX_NEW_TOKENS = 256
TaskData = ChatData | CompletionData | Seq2SeqData | TextData


@dataclass
class Chatter:
    """A model that answers. `turns` is the conversation so far (chat models only).

    `row` holds values for columns of the model's prompt and system turn; a text that is asked fills the remaining one.
    `system` replaces the system turn of training. `is_trained_prompt` is false for a model that tunesmith did not tune,
    which has no prompt template. `recorded` are the settings of its recipe, if known.
    """

    model: Any
    task: Task
    data: TaskData
    tokenizer: TokenizerAdapter
    is_trained_prompt: bool
    system: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    recorded: RecordedOptions = field(default_factory=RecordedOptions)

    @property
    def keeps_turns(self) -> bool:
        """Whether the model is asked in a conversation."""
        return isinstance(self.data, ChatData)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that its prompt and its system turn take from a row, in order."""
        return tuple(dict.fromkeys(name for template in _templates(self.data) for name in columns_in(template)))

    def ask(
        self,
        text: str,
        *,
        max_new_tokens: int | None = None,
        beams: int = 1,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> str:
        """Return the answer to `text`, put in the prompt that the model was trained with.

        A chat model remembers what was said before.

        Args:
            max_new_tokens: limit of the answer; by default that of its evaluation, else 256, or less if the model has
                fewer positions left.
            beams: width of the beam search; 1 means no beam search.
            sampling: how tokens are chosen; by default the likeliest one.
            stop: texts before which the answer ends.

        Raises:
            RecipeError: the prompt has several columns that `row` does not give, or settings contradict each other.
            DataError: the chat template refuses the conversation.
            DoesNotFit: prompt and answer exceed the model's positions, or memory.
        """
        asked = (*self.turns, Turn("user", text, trained=False)) if self.turns else self.turns_of_text(text)
        [line] = self.answer([asked], max_new_tokens=max_new_tokens, beams=beams, sampling=sampling, stop=stop)
        if line["error"] is not None:
            raise DataError(str(line["error"]), hint="ask less at once, or lower --max-new-tokens")
        said = str(line["prediction"])
        if self.keeps_turns:
            self.turns = [*asked, Turn("assistant", said, trained=False)]
        return said

    def turns_of_text(self, text: str) -> tuple[Turn, ...]:
        """Return the turns that ask `text`; raise RecipeError if the prompt needs more columns than it fills."""
        if isinstance(self.data, TextData):
            return self.task.user_turn(text)
        if isinstance(self.data, ChatData) and self.data.messages:
            return self.turns_of_row({**self.row, self.data.messages: [{"role": "user", "content": text}]})
        optional = optional_columns(self.data)
        left = [name for name in self.columns if name not in self.row and name not in optional]
        if len(left) != 1:
            raise RecipeError(
                f"a prompt text fills one column, and {_listed(left) if left else 'no column'} of this model's prompt "
                f"{'are' if left else 'is'} left to fill",
                code="usage",
                hint=f"give {'all but one' if left else 'fewer'} with --row: {_row_options(self.columns)}; "
                "or rows of a file with --rows FILE",
            )
        return self.turns_of_row({**self.row, left[0]: text})

    def turns_of_row(self, row: Mapping[str, Any], where: str | None = None) -> tuple[Turn, ...]:
        """Return the turns that ask about a row as evaluation does; the row needs no answer.

        Raises:
            RecipeError: the row lacks a column.
            DataError: the row cannot be used.
        """
        try:
            turns = self.task.prompt_turns(row)
        except MissingColumn as missing:
            raise RecipeError(
                f"there is no column `{missing.column}`", where=where, code="usage",
                hint=f"the prompt of this model needs {_listed(self.columns) or f'`{missing.column}`'}",
            ) from missing  # fmt: skip
        except RowProblem as problem:
            raise DataError(str(problem), where=where) from problem
        if self.system is None:
            return turns
        return (Turn("system", self.system, trained=False), *(turn for turn in turns if turn.role != "system"))

    def answer(
        self,
        asked: Sequence[Sequence[Turn]],
        *,
        max_new_tokens: int | None = None,
        beams: int = 1,
        sampling: Sampling = GREEDY,
        samples: int = 1,
        stop: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Return {prompt, prediction, stopped, error} for each list of turns, in order.

        Args:
            samples: how many answers to each are drawn, one after the other in the result. Their seeds are
                `sampling.seed`, the next number, and so on.

        The other arguments are those of `ask`.
        """
        refuse_contradictions(sampling, samples=samples, beams=beams, stop=stop, max_new_tokens=max_new_tokens)
        drawn = seed_samples(sampling, samples) * len(asked)
        asked = [turns for turns in asked for _ in range(samples)]
        examples = tuple(Example(str(i), i + 1, str(i), tuple(turns)) for i, turns in enumerate(asked))
        prompts = tuple(tuple(self._prompt(turns)) for turns in asked)
        texts = tuple("\n\n".join(turn.text for turn in turns) for turns in asked)
        limit = self._limit(prompts) if max_new_tokens is None else max_new_tokens
        questions = Prompts(examples, prompts, texts, self.task.stop_ids, limit, self.task.decoder_prefix_ids, beams)
        stops = StopStrings(tuple(stop), self.tokenizer.decode) if stop else None
        found = predict(self.model, questions, self.task, range(len(examples)), sampling=drawn, stop_strings=stops)
        lines = {
            line["row"]: {key: line[key] for key in ("prompt", "prediction", "stopped", "error")} for line in found
        }
        return [lines[example.row] for example in examples]

    def _limit(self, prompts: Sequence[Sequence[int]]) -> int:
        """Return the default limit of an answer in tokens."""
        taken = len(self.task.decoder_prefix_ids) or max(map(len, prompts), default=0)
        return max(1, min(self.recorded.max_new_tokens or _MAX_NEW_TOKENS, max_positions(self.model) - taken))

    def _prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of a prompt; a chat template may rewrite earlier answers, as by leaving out thoughts.

        Raises:
            DataError: the template refuses the conversation, or rewrites one whose text spells control tokens.
        """
        try:
            return self.task.encode_prompt(turns)
        except RowProblem as problem:
            if not self.keeps_turns or any(map(self._spells_control_tokens, turns)):
                raise DataError(str(problem)) from problem
            try:
                text = self.tokenizer.apply_chat_template(
                    [{"role": t.role, "content": t.text} for t in turns], generation=True
                )
            except Exception as error:  # a template may raise anything
                raise DataError(f"the chat template refuses the conversation: {error}") from error
            return self.tokenizer.encode_trusted(text)

    def _spells_control_tokens(self, turn: Turn) -> bool:
        """Whether a turn's text holds tokens that its author may not write; an answer may hold some (<think>)."""
        forbidden = self.tokenizer.special_ids if turn.role == "assistant" else self.tokenizer.control_ids
        return not forbidden.isdisjoint(self.tokenizer.encode_trusted(turn.text))


def open_chatter(
    reference: str,
    *,
    adapters: AdapterSet | None = None,
    system: str | None = None,
    row: Mapping[str, Any] | None = None,
) -> Chatter:
    """Load a model by any reference; one that tunesmith tuned brings its task along.

    Args:
        adapters: a set in which `reference` is a name; that adapter is put to use, and answers until another one is.
        system: a system turn that replaces the one of training.
        row: values for columns of the prompt.

    Raises:
        RecipeError: there is no such model, or `system` or a column of `row` would have no effect.
    """
    found = adapters.folder(reference) if adapters else resolve(reference)
    tokenizer = load_tokenizer(found)
    data, is_trained = _data_of(found, tokenizer)
    if system is not None:
        if not isinstance(data, ChatData):
            raise RecipeError(f"a system turn has no effect on `task: {data.task}`", code="usage")
        data = data.model_copy(update={"system": None})
    task = task_for(data, tokenizer)
    chatter = Chatter(None, task, data, tokenizer, is_trained, system, row or {}, recorded=recorded_options(found))
    known = (*chatter.columns, *([data.messages] if isinstance(data, ChatData) and data.messages else []))
    if unused := [name for name in chatter.row if name not in known]:
        hint = f"its prompt has {_listed(known)}" if is_trained and known else "it has no columns; give --prompt TEXT"
        raise RecipeError(f"the model's prompt has no column {_listed(unused)}", code="usage", hint=hint)
    chatter.model = adapters.use(reference) if adapters else open_model(found, _machine(found)).eval()
    return chatter


def _machine(found: ModelFolder) -> ComputeConfig:
    """Return this machine with the precision that the model was trained in, or another if it lacks that."""
    quantized = trained_quantization(found) is not None
    with suppress(RecipeError):
        return choose_compute(found.card.get("precision", "auto"), quantized=quantized)  # type: ignore[arg-type]
    return choose_compute(quantized=quantized)


def _data_of(found: ModelFolder, tokenizer: TokenizerAdapter) -> tuple[TaskData, bool]:
    """Return the data section that a model was tuned with, and true; for others one that suits it, and false."""
    source = FileSource(file="none")
    stored = found.card.get("data")
    if isinstance(stored, dict):
        data: TaskData = TypeAdapter(Data).validate_python({**stored, "source": source})
        # Texts that brought markup along were conversations: what a person says is put in a turn, as the base gets it.
        if not (isinstance(data, TextData) and data.control_tokens and tokenizer.has_chat_template):
            return data, True
    if tokenizer.has_encoder:
        return Seq2SeqData(source=source, task="seq2seq", prompt="{source}", response="{target}"), False
    if tokenizer.has_chat_template:
        return ChatData(source=source, task="chat", messages="messages"), False
    return TextData(source=source, task="text", text="text", sample_prefix_tokens=2**31), False


def _templates(data: TaskData) -> Iterator[str]:
    """Yield the templates that a question is made from."""
    if isinstance(data, TextData):
        yield data.text if columns_in(data.text) else f"{{{data.text}}}"
    elif isinstance(data, ChatData):
        yield from (template for template in (data.system, data.prompt) if template is not None)
    else:
        yield data.prompt


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _row_options(columns: Sequence[str]) -> str:
    return " ".join(f"--row {name}=..." for name in columns)
