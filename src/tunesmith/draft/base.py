"""Open the model to start from without downloading it, and choose the task that it supports."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.architecture.families import shapes_of
from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.draft.conversations import write_tools_as_text
from tunesmith.draft.layout import Layout
from tunesmith.draft.sample import path_from
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.model import Model
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter


@dataclass(frozen=True, slots=True)
class Base:
    """The model to start from. All but its reference is unknown if it is not on this machine.

    Attributes:
        reference: `model.base`.
        positions: the most tokens that it can read; None if there is no limit, or if it is unknown.
        chat_markup: `model.chat_markup`, for conversations with a model that has no chat template.
    """

    reference: str
    model: ModelFolder | None = None
    tokenizer: TokenizerAdapter | None = None
    positions: int | None = None
    chat_markup: str | None = None

    @property
    def has_encoder(self) -> bool:
        """Whether it reads a source and writes a target."""
        return self.tokenizer is not None and self.tokenizer.has_encoder

    @property
    def has_chat_template(self) -> bool:
        """Whether it can read conversations, which is assumed of an unknown model."""
        return self.tokenizer is None or self.tokenizer.has_chat_template


def open_base(reference: str, folder: Path) -> Base:
    """Return a model for a recipe in `folder`; raise RecipeError if there is none of that name.

    Args:
        reference: a model reference; a path is relative to the current folder.
    """
    path = Path(reference)
    in_recipe = path_from(path, folder) if path.exists() and not path.is_absolute() else reference
    try:
        model = resolve(reference, weights=False, download=False)
    except RecipeError as error:
        if error.code != "fetch-failed":
            raise
        return Base(in_recipe)
    positions = None
    with suppress(TunesmithError):  # `plan` reports what is wrong with the model
        positions = shapes_of(model.root.path).positions
    return Base(in_recipe, model, load_tokenizer(model), positions)


def fit_to_model(base: Base, layout: Layout) -> tuple[Base, Layout]:
    """Return the layout with the task that the model supports, and the model with ChatML if it needs that.

    Raises:
        RecipeError: the model has an encoder, and the rows have no source and target; or its chat template writes no
            tools, and the rows have them in a form that cannot be text.
    """
    settings = dict(layout.settings)
    if "prompt" not in settings:
        if base.has_encoder:
            problem = f"`{base.reference}` has an encoder, and the rows are no pairs of a source and a target"
            hint = "choose a model without an encoder, or give the rows a prompt and an answer"
            raise RecipeError(problem, where="--model", hint=hint, code="task-unsupported")
        if "messages" in settings and base.model and not base.has_chat_template:
            with_markup = Model(base=base.reference, chat_markup="chatml")
            base = replace(base, tokenizer=load_tokenizer(base.model, with_markup), chat_markup="chatml")
    elif base.has_encoder or not base.has_chat_template:
        return base, _without_template(base, layout)
    if "tools" in settings and base.tokenizer and base.tokenizer.unread_by_chat_template(["tools"], with_tools=True):
        return base, _with_tools_as_text(base, layout)
    return base, layout


def _without_template(base: Base, layout: Layout) -> Layout:
    """Return the layout for a model that gets a prompt without a chat template, or with an encoder."""
    settings = dict(layout.settings)
    tools, system = settings.pop("tools", ""), settings.pop("system", "")
    parts = [system, f"{{{tools}?}}" if tools else "", settings["prompt"]]
    settings.pop("reasoning", None)
    end = "" if base.has_encoder else "\n\n"  # a prompt and its answer are joined as they are
    settings["task"] = "seq2seq" if base.has_encoder else "completion"
    settings["prompt"] = "\n\n".join(filter(None, parts)) + end
    return replace(layout, settings=settings)


def _with_tools_as_text(base: Base, layout: Layout) -> Layout:
    """Return the layout with tools and calls as text; raise RecipeError if the rows do not allow it."""
    if found := write_tools_as_text(layout.columns, layout.settings):
        settings, reasons = found
        return replace(layout, settings=settings, reasons=layout.reasons | reasons)
    problem = (
        f"the rows have tools in `{layout.settings['tools']}`, which the chat template of `{base.reference}` drops"
    )
    hint = "name a model whose template writes tools with --model, such as Qwen/Qwen3-0.6B"
    raise RecipeError(problem, where="--model", hint=hint, code="no-effect")
