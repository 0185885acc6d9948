"""What a proof asks: texts to encode, conversations to render, and prompts to answer."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tunesmith.core.records import Example, Turn
from tunesmith.core.rundir import RunDir
from tunesmith.evaluate.run_rows import RunRows
from tunesmith.fetch.model_folder import ModelFolder, known_folders
from tunesmith.inference.chatter import prompt_data
from tunesmith.inference.prompts import Prompts, build_prompts
from tunesmith.inference.recorded import recorded_options
from tunesmith.proof.probes import TEXTS, control_texts, conversations
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.sampling import Sampling
from tunesmith.recipe.schema import ChatData
from tunesmith.tasks import task_for
from tunesmith.tasks.base import RowProblem, Task
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

DEFAULT_ROWS = 100
"""Enough for the verdict of the demo, and answered within a minute or two on a CPU."""

_PROBE_TOKENS = 64
_MAX_CHARACTERS = 4000  # of a row's text whose ids are compared
_ROLES = {"system", "user", "assistant"}

Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and the ids of the prompt that they become.

    Attributes:
        with_system: the ids if the engine puts the recipe's own system turn first, as the prompts of training have it;
            None if the messages begin with a system turn, or if the recipe has none.
    """

    name: str
    messages: Messages
    ids: tuple[int, ...]
    with_system: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """Everything that is asked about a model.

    Attributes:
        texts: texts whose ids are compared, with their names, which do not show rows.
        conversations: probes, and the conversations of the rows; empty if the model is not asked with conversations.
        unsent: the parts of a prompt that are not messages, such as tools; empty if there are none.
        prompts: the prompts to answer: those of the rows, else of the probes.
        messages: the messages of each prompt; None for one that is not made of plain messages.
        rows: the run's rows; None if they are not at hand.
        no_rows: why they are not; empty if they are.
    """

    tokenizer: TokenizerAdapter
    task: Task
    texts: Mapping[str, str]
    conversations: tuple[Conversation, ...]
    unsent: str
    prompts: Prompts
    messages: tuple[Messages | None, ...]
    rows: RunRows | None
    no_rows: str = ""


def find_rows(model: ModelFolder, count: int = DEFAULT_ROWS) -> RunRows | str:
    """Return the test rows of the run that trained a model, or why they are not at hand.

    The run of a registry version is found if its folder has not been moved since its digest was last computed.
    """
    if model.pin is not None and model.pin.kind == "run":
        return rows_of_run(RunDir(model.pin.at), count)
    for folder in known_folders(model.digest()):
        for parent in folder.parents:
            run = RunDir(parent)
            if folder.is_dir() and run.resolved_recipe.exists() and run.checkpoints in folder.parents:
                return rows_of_run(run, count)
    return "no run of this model was found on this machine"


def rows_of_run(run: RunDir, count: int = DEFAULT_ROWS) -> RunRows | str:
    """Return up to `count` test rows of a run, answered greedily, or why they cannot be used."""
    if run.manifest("prepare") is None:
        return "the run has no prepared rows"
    recipe = load_recipe(run.resolved_recipe)
    settings = recipe.evaluate
    changes = {"rows": min(settings.rows, count), "samples": 1, "beams": 1, "sampling": Sampling()}
    greedy = recipe.model_copy(update={"evaluate": settings.model_copy(update=changes)})
    rows = RunRows(greedy, run, evaluated=False)
    return rows if rows.examples else "the run has no test rows"


def questions_about(model: ModelFolder, rows: RunRows | str) -> Questions:
    """Return the questions about a model: probes, and its test rows if they are at hand.

    Raises:
        RecipeError: the rows are of a run whose prompts this model cannot answer.
        DataError: the rows do not fill the model's prompt template.
    """
    tokenizer = load_tokenizer(model)
    data, _ = prompt_data(model, tokenizer)
    examples: tuple[Example, ...] = ()
    if isinstance(rows, RunRows):
        asked, run_rows, no_rows = rows.prompts_of(model), rows, ""
        task, examples = asked.task, asked.examples
        prompts = build_prompts(examples, asked.recipe, task, asked.tokenizer)
    else:
        run_rows, no_rows = None, rows
        task = task_for(data, tokenizer)
        prompts = _prompts_of_probes(task, recorded_options(model).max_new_tokens)
    messages = tuple(_messages(example.turns, answered=run_rows is not None) for example in prompts.examples)
    of_rows = tuple(
        Conversation(f"row {example.row}", sent, ids)
        for example, sent, ids in zip(examples, messages, prompts.prompts, strict=bool(examples))
        if sent is not None and task.find_control_token(example.turns) is None
    )
    probes = {text: repr(text) for text in (*TEXTS, *control_texts(_control_tokens(tokenizer)))}
    return Questions(
        tokenizer=tokenizer,
        task=task,
        texts=probes | _texts_of_rows(examples),
        conversations=(*_conversation_probes(task), *of_rows) if isinstance(task, ChatTask) else (),
        unsent=_unsent(data),
        prompts=prompts,
        messages=messages if isinstance(task, ChatTask) else (None,) * len(messages),
        rows=run_rows,
        no_rows=no_rows,
    )


def _prompts_of_probes(task: Task, limit: int) -> Prompts:
    """Return prompts that need no data: conversations, or texts to complete."""
    if isinstance(task, ChatTask):
        turns = [_turns(conversation) for conversation in _all_conversations(task)]
        encode = task.encode_conversation
    else:
        turns, encode = [task.user_turn(text) for text in TEXTS if text.strip()], task.encode_prompt
    examples, ids = [], []
    for number, prompt in enumerate(turns, 1):
        with suppress(RowProblem):  # the chat template refuses it
            ids.append(tuple(encode(prompt)))
            examples.append(Example(f"probe {number}", number, f"probe {number}", prompt))
    texts = tuple("\n\n".join(turn.text for turn in example.turns) for example in examples)
    new_tokens = min(limit, _PROBE_TOKENS)
    return Prompts(tuple(examples), tuple(ids), texts, task.stop_ids, new_tokens, task.decoder_prefix_ids)


def _conversation_probes(task: ChatTask) -> tuple[Conversation, ...]:
    """Return the probes that the model's chat template accepts."""
    system = [turn for turn in task.user_turn("x") if turn.role == "system"]
    probes = []
    for number, conversation in enumerate(_all_conversations(task), 1):
        turns = _turns(conversation)
        with suppress(RowProblem):
            ids = tuple(task.encode_conversation(turns))
            adds_system = bool(system) and turns[0].role != "system"
            with_system = tuple(task.encode_conversation((*system, *turns))) if adds_system else None
            sent = tuple({"role": role, "content": text} for role, text in conversation)
            probes.append(Conversation(f"conversation {number}", sent, ids, with_system))
    return tuple(probes)


def _all_conversations(task: ChatTask) -> Sequence[Sequence[tuple[str, str]]]:
    return [conversation for system in (False, True) for conversation in conversations(system=system)]


def _turns(conversation: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
    return tuple(Turn(role, text, trained=False) for role, text in conversation)


def _messages(turns: Sequence[Turn], *, answered: bool) -> Messages | None:
    """Return the prompt's turns as messages; None if they have more than a role and a text.

    Args:
        answered: whether the last turn is the reference answer.
    """
    asked = turns[:-1] if answered else turns
    if any(turn.keys or turn.role not in _ROLES for turn in asked):
        return None
    return tuple({"role": turn.role, "content": turn.text} for turn in asked)


def _texts_of_rows(examples: Sequence[Example]) -> dict[str, str]:
    pairs = [(turn.text[:_MAX_CHARACTERS], example.row) for example in examples for turn in example.turns]
    return {text: f"a text of row {row}" for text, row in reversed(pairs)}


def _control_tokens(tokenizer: TokenizerAdapter) -> list[str]:
    return [tokenizer.decode([i]) for i in sorted(tokenizer.special_ids)]


def _unsent(data: Any) -> str:
    """Return the names of the settings that add more than messages to a prompt."""
    if not isinstance(data, ChatData):
        return ""
    given = {"tools": data.tools, "template arguments": data.template_arguments, "a fixed date": data.template_date}
    return " and ".join(name for name, value in given.items() if value)
