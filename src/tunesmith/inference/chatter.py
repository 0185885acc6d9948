"""Ask a model with the same prompt template and generation as in training and evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.records import Example, Turn
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.inference.predict import predict
from tunesmith.inference.prompts import Prompts
from tunesmith.inference.recorded import RecordedOptions, recorded_options
from tunesmith.inference.request import StopStrings
from tunesmith.inference.sampling import GREEDY, Sampling, check_generation_options, seed_samples
from tunesmith.model.adapter_set import AdapterSet
from tunesmith.model.adapters import open_model
from tunesmith.model.load import ComputeConfig, choose_compute, max_positions
from tunesmith.model.quantization import trained_quantization
from tunesmith.recipe.columns import message_columns, optional_columns, tools_column
from tunesmith.recipe.data_record import UNKNOWN_SOURCE
from tunesmith.recipe.schema import ChatData, CompletionData, Seq2SeqData, TextData
from tunesmith.recipe.template import columns_in
from tunesmith.tasks import task_for
from tunesmith.tasks.base import MissingColumn, RowProblem, Task
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.recorded_data import recorded_data
from tunesmith.tasks.tokenizer import TokenizerAdapter

TaskData = ChatData | CompletionData | Seq2SeqData | TextData


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """The turns of a prompt and its ids."""

    turns: tuple[Turn, ...]
    ids: tuple[int, ...]


@dataclass
class Chatter:
    """A model with its prompt template.

    Attributes:
        is_trained_prompt: false for a model that tunesmith did not tune, which has no prompt template.
        system: replaces the system turn of training.
        row: values for columns of the prompt and the system turn; a prompt text fills the remaining column.
        turns: the conversation so far (chat models only).
        recorded: settings of the model's recipe, if known.
        folder: the files of the model.
    """

    model: Any
    task: Task
    data: TaskData
    tokenizer: TokenizerAdapter
    folder: ModelFolder
    is_trained_prompt: bool
    system: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    recorded: RecordedOptions = field(default_factory=RecordedOptions)

    @property
    def keeps_turns(self) -> bool:
        """Whether the model answers in a conversation."""
        return isinstance(self.data, ChatData)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the prompt and the system turn, in order."""
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
        """Return the answer to `text` in the prompt template of training; a chat model continues the conversation.

        Args:
            max_new_tokens: the limit of the answer; by default the limit of its evaluation, else 256, but at most the
                positions that the prompt leaves.
            beams: width of the beam search; 1 means no beam search.
            sampling: how tokens are chosen; by default greedily.
            stop: texts before which the answer ends.

        Raises:
            RecipeError: the prompt has several columns that `row` does not fill, or options contradict each other.
            DataError: the chat template refuses the conversation, or prompt and answer exceed the model's positions.
            DoesNotFit: there is too little memory.
        """
        turns = (*self.turns, Turn("user", text, trained=False)) if self.turns else self.turns_of_text(text)
        [line] = self.answer([turns], max_new_tokens=max_new_tokens, beams=beams, sampling=sampling, stop=stop)
        if line["error"] is not None:
            hint = "shorten the prompt, or lower --max-new-tokens"
            raise DataError(str(line["error"]), hint=hint, code="prompt-too-long")
        answer = str(line["prediction"])
        if self.keeps_turns:
            self.turns = [*turns, Turn("assistant", answer, trained=False)]
        return answer

    def turns_of_text(self, text: str) -> tuple[Turn, ...]:
        """Return the turns with `text` as the prompt; raise RecipeError if it cannot fill exactly one column."""
        if isinstance(self.data, TextData):
            return self.task.user_turn(text)
        if columns := message_columns(self.data):
            return self.turns_of_row({**self.row, columns[0]: [{"role": "user", "content": text}]})
        optional = optional_columns(self.data)
        unfilled = [name for name in self.columns if name not in self.row and name not in optional]
        if len(unfilled) != 1:
            problem = f"{_listed(unfilled)} have no value" if unfilled else "--row already sets all of them"
            message = f"a prompt text replaces one column of this model's prompt template, but {problem}"
            options = " ".join(f"--row {name}=..." for name in self.columns)
            count = "all columns but one" if unfilled else "fewer columns"
            hint = f"set {count} with --row: {options}; or use rows of a file with --file FILE"
            raise RecipeError(message, code="prompt-columns", hint=hint)
        return self.turns_of_row({**self.row, unfilled[0]: text})

    def turns_of_row(self, row: Mapping[str, Any], where: str | None = None) -> tuple[Turn, ...]:
        """Return the turns of a row's prompt, as in evaluation; the row needs no answer.

        Raises:
            RecipeError: the row lacks a column.
            DataError: the row cannot be used.
        """
        try:
            turns = self.task.prompt_turns(row)
        except MissingColumn as missing:
            message = f"there is no column `{missing.column}`"
            hint = f"this model's prompt has the columns {_listed(self.columns or [missing.column])}"
            raise RecipeError(message, where=where, code="prompt-columns", hint=hint) from missing
        except RowProblem as problem:
            raise DataError(str(problem), where=where) from problem
        if self.system is None:
            return turns
        return (Turn("system", self.system, trained=False), *(turn for turn in turns if turn.role != "system"))

    def answer(
        self,
        conversations: Sequence[Sequence[Turn]],
        *,
        max_new_tokens: int | None = None,
        beams: int = 1,
        sampling: Sampling = GREEDY,
        samples: int = 1,
        stop: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Return {prompt, prediction, stopped, error} for each conversation, in order.

        Args:
            samples: number of answers to each conversation, consecutive in the result. Their seeds are consecutive
                numbers from `sampling.seed` on.

        The other arguments are those of `ask`.
        """
        check_generation_options(sampling, samples=samples, beams=beams, stop=stop, max_new_tokens=max_new_tokens)
        options = seed_samples(sampling, samples) * len(conversations)
        prompts = [prompt for turns in conversations for prompt in [self.encode_prompt(turns)] * samples]
        lines = dict(self.answer_prompts(prompts, options, max_new_tokens=max_new_tokens, beams=beams, stop=stop))
        return [lines[place] for place in range(len(prompts))]

    def answer_prompts(
        self,
        encoded: Sequence[EncodedPrompt],
        sampling: Sequence[Sampling],
        *,
        max_new_tokens: int | None = None,
        beams: int = 1,
        stop: Sequence[str] = (),
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (place of the prompt, {prompt, prediction, stopped, error}) as answers finish.

        Args:
            sampling: how each answer is sampled.

        The other arguments are those of `ask`. An answer does not depend on the other prompts.
        """
        examples = tuple(Example(str(i), i + 1, str(i), prompt.turns) for i, prompt in enumerate(encoded))
        ids = tuple(prompt.ids for prompt in encoded)
        texts = tuple("\n\n".join(turn.full_text for turn in prompt.turns) for prompt in encoded)
        stops = StopStrings(tuple(stop), self.tokenizer.decode) if stop else None
        by_limit: dict[int, list[int]] = {}
        for place, prompt in enumerate(encoded):
            by_limit.setdefault(max_new_tokens or self._default_limit(prompt), []).append(place)
        for limit, places in by_limit.items():
            prompts = Prompts(
                examples,
                ids,
                texts,
                self.task.stop_ids,
                limit,
                self.task.decoder_prefix_ids,
                beams,
                sampling=tuple(sampling),
                stop_strings=stops,
            )
            for line in predict(self.model, prompts, self.task, places):
                yield line["row"] - 1, {key: line[key] for key in ("prompt", "prediction", "stopped", "error")}

    def _default_limit(self, prompt: EncodedPrompt) -> int:
        """Return the default limit of an answer in tokens, which leaves room for its prompt."""
        taken = len(self.task.decoder_prefix_ids or prompt.ids)
        return max(1, min(self.recorded.max_new_tokens, max_positions(self.model) - taken))

    def encode_prompt(self, turns: Sequence[Turn]) -> EncodedPrompt:
        """Return a prompt with its ids. Chat templates may rewrite earlier answers, such as removing their thoughts.

        Raises:
            DataError: the template refuses the conversation, or rewrites one whose text contains control tokens.
        """
        encode = self.task.encode_conversation if isinstance(self.task, ChatTask) else self.task.encode_prompt
        try:
            return EncodedPrompt(tuple(turns), tuple(encode(turns)))
        except RowProblem as problem:
            raise DataError(str(problem), code=problem.code) from problem


def open_chatter(
    reference: str, *, adapters: AdapterSet | None = None, system: str | None = None, row: Mapping[str, Any] = {}
) -> Chatter:
    """Load a model by any reference, with the prompt template of its training if tunesmith tuned it.

    Args:
        adapters: a set in which `reference` is a name. Its adapter is activated, and stays active until another one is.
        system: a system turn that replaces that of training.
        row: values for columns of the prompt.

    Raises:
        RecipeError: there is no such model, or `system` or a column of `row` would have no effect.
    """
    folder = adapters.folder(reference) if adapters else resolve(reference)
    chatter = open_prompts(folder, system=system, row=row)
    chatter.model = adapters.use(reference) if adapters else open_model(folder, _compute_config(folder)).eval()
    return chatter


def open_prompts(folder: ModelFolder, *, system: str | None = None, row: Mapping[str, Any] = {}) -> Chatter:
    """Return a Chatter that encodes prompts and decodes answers; its `model` is None, and no weights are read.

    The arguments and errors are those of `open_chatter`.
    """
    tokenizer = load_tokenizer(folder)
    data, is_trained = prompt_data(folder, tokenizer)
    if system is not None:
        if not isinstance(data, ChatData):
            raise RecipeError(f"a system turn has no effect with `task: {data.task}`", code="no-effect")
        data = data.model_copy(update={"system": None})
    task = task_for(data, tokenizer)
    chatter = Chatter(None, task, data, tokenizer, folder, is_trained, system, row, recorded=recorded_options(folder))
    known = (*chatter.columns, *message_columns(data), *([column] if (column := tools_column(data)) else []))
    if unused := [name for name in chatter.row if name not in known]:
        hint = f"its columns are {_listed(known)}" if is_trained and known else "it has no columns; use --prompt TEXT"
        raise RecipeError(f"the model's prompt has no column {_listed(unused)}", code="prompt-columns", hint=hint)
    return chatter


def _compute_config(folder: ModelFolder) -> ComputeConfig:
    """Return this machine's device with the precision of training, or with another one if it does not support that."""
    quantized = trained_quantization(folder) is not None
    with suppress(RecipeError):
        return choose_compute(folder.card.get("precision", "auto"), quantized=quantized)
    return choose_compute(quantized=quantized)


def prompt_data(folder: ModelFolder, tokenizer: TokenizerAdapter) -> tuple[TaskData, bool]:
    """Return the data section of the model's training and true, or a default section and false."""
    data = recorded_data(folder)
    # Texts with control tokens were formatted conversations, so a prompt goes into a turn, as for the base.
    is_conversation = isinstance(data, TextData) and data.control_tokens and tokenizer.has_chat_template
    if data is not None and not is_conversation:
        return data, True
    if tokenizer.has_encoder:
        return Seq2SeqData(source=UNKNOWN_SOURCE, task="seq2seq", prompt="{source}", response="{target}"), False
    if tokenizer.has_chat_template:
        return ChatData(source=UNKNOWN_SOURCE, task="chat", messages="messages"), False
    return TextData(source=UNKNOWN_SOURCE, task="text", text="text", sample_prefix_tokens=2**31), False


def _templates(data: TaskData) -> list[str]:
    """Return the templates of the prompt."""
    if isinstance(data, TextData):
        return [data.text if columns_in(data.text) else f"{{{data.text}}}"]
    templates = [data.system, data.prompt] if isinstance(data, ChatData) else [data.prompt]
    return [template for template in templates if template is not None]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
