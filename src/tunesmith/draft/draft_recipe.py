"""Write a recipe that fits a data file: its format, its lengths, its kind of answers."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.core.rundir import HELD_OUT
from tunesmith.data.find_files import source_label
from tunesmith.draft import numbers
from tunesmith.draft.answers import AnswerKind, recognize_answers
from tunesmith.draft.base import Base, fit_to_model, open_base
from tunesmith.draft.columns import leaf_name
from tunesmith.draft.held_out import find_held_out, numbered_references
from tunesmith.draft.layout import Layout, choose_layout
from tunesmith.draft.measure import Measured, measure
from tunesmith.draft.sample import Sample, find_source, read_sample
from tunesmith.draft.yaml_text import Setting, to_values, to_yaml
from tunesmith.recipe.schema import Recipe

_UNLIMITED = 10**9
_ANY_LENGTH = {"max_tokens_per_example": _UNLIMITED, "max_dropped_fraction": 0.99}
_SUMMARIES = ("summary", "highlights", "abstract", "tldr")
_TEXTS = ("text", "sentence", "document", "review", "content", "body", "title", "article", "message", "dialogue")
_MAX_LABELS_NAMED = 12


def draft_recipe(data: str, *, out: Path, model: str) -> str:
    """Return the text of a recipe for the rows of `data`. Its remarks are about the first rows only.

    Args:
        data: a file, a pattern, an address, a folder with the layout of a dataset, or `org/name` of a dataset on the
            hub.
        out: the file in which the recipe will be; its paths start from there.
        model: a model reference. It is not downloaded; without its tokenizer, lengths are estimated.

    Raises:
        DataError: the rows cannot be read, or hold nothing that a model could learn from.
        RecipeError: there is no such model, or it cannot be trained on such rows.
    """
    folder = out.parent
    source, data = find_source(data, folder), source_label(data)
    sample = read_sample(source, folder)
    base, layout = fit_to_model(open_base(model, folder), choose_layout(sample, data))
    source |= _rename(layout, sample)
    in_source = {new: old for old, new in source.get("rename", {}).items()}
    parts = [path.partition(".") for path in layout.essential]
    needed = {in_source.get(name, name) + mark + inner for name, mark, inner in parts}
    held_out = {} if layout.split else find_held_out(source, needed, folder)
    if references := numbered_references(held_out.values(), layout.settings.get("response", "").strip("{}"), folder):
        layout = layout.with_references(references)
    measured = measure(_provisional(source, layout, base), sample.rows, base.tokenizer)
    kind = recognize_answers(measured.answers) if layout.settings["task"] != "text" else None
    instructed = _with_instruction(layout, kind)
    if instructed is not layout:
        layout = instructed
        measured = measure(_provisional(source, layout, base), sample.rows, base.tokenizer)
    draft = _Draft(data, source, sample, base, layout, held_out, measured, kind)
    settings = draft.settings()
    Recipe.model_validate(to_values(settings))
    return draft.heading(out) + to_yaml(settings)


@dataclass(frozen=True, slots=True)
class _Draft:
    """Everything that the settings of the recipe follow from."""

    data: str
    source: dict[str, Any]
    sample: Sample
    base: Base
    layout: Layout
    held_out: dict[str, dict[str, Any]]
    measured: Measured
    kind: AnswerKind | None

    def heading(self, out: Path) -> str:
        """Return the comment at the top of the file."""
        return (
            f"# Written by `tunesmith init` from {self.sample.size} of {Path(self.data).name}.\n"
            f"# Check each reason, then:\n#\n"
            f"#   tunesmith plan {out.name}    checks the recipe and all rows without training\n"
            f"#   tunesmith show {out.name}    shows rows as the model sees them\n"
            f"#   tunesmith run {out.name}     prepares, trains and evaluates\n\n"
        )

    def settings(self) -> list[Setting]:
        """Return all sections of the recipe."""
        name = _name(self.data)
        promote = [
            Setting("model", name, "its name in the registry"),
            Setting("alias", "staging", "moved to the new version if that is better"),
        ]
        return [
            Setting("name", name, "the run's folder is runs/NAME/ID"),
            Setting("model", self._model()),
            Setting("data", self._data()),
            Setting("tuning", self._tuning()),
            Setting("train", self._train()),
            Setting("evaluate", self._evaluate()),
            Setting(
                "promote", promote, "register a better model; else the run ends with its verdict", is_suggestion=True
            ),
        ]

    @property
    def _is_text(self) -> bool:
        return bool(self.layout.settings["task"] == "text")

    @property
    def _answer_limit(self) -> Setting:
        if self._is_text:
            return Setting("max_new_tokens", 64, "length of a sample in the report")
        return numbers.answer_limit(self.measured, exact=self.base.tokenizer is not None)

    def _model(self) -> list[Setting]:
        reason = "" if self.base.tokenizer else "not on this machine yet; `plan` fetches it"
        settings = [Setting("base", self.base.reference, reason)]
        if self.base.chat_markup:
            settings.append(Setting("chat_markup", self.base.chat_markup, "the model has no chat template"))
        return settings

    def _data(self) -> list[Setting]:
        layout, sample = self.layout, self.sample
        found = {"valid": "validation rows", "test": "test rows"}
        room = self.base.positions - self._answer_limit.value if self.base.positions else None
        copies = numbers.identical_rows(self.measured)
        split = self._split()
        return [
            Setting("source", self.source),
            *(Setting(name, value, f"the set's own {found[name]}") for name, value in self.held_out.items()),
            *(Setting(key, value, layout.reasons.get(key, "")) for key, value in layout.settings.items()),
            *_filters(layout, sample),
            *numbers.length_limits(
                self.measured, room=room, is_text=self._is_text, exact=self.base.tokenizer is not None
            ),
            *([Setting("duplicates", "drop", copies, is_suggestion=True)] if copies else []),
            *([Setting("split", split)] if split else []),
        ]

    def _split(self) -> list[Setting]:
        if column := self.layout.split:
            return [Setting("column", column.name, "holds the split of each row: train, valid or test")]
        settings = numbers.split_fractions(
            self.measured, len(self.sample.rows), list(self.held_out), is_all=self.sample.is_all
        )
        alike = "" if self._is_text else numbers.differing_in_numbers(self.measured.prompts)
        if settings and (group := self.layout.group):
            reason = f"{group.distinct:,} values in {self.sample.size}: keeps the rows of one in one split"
            settings.append(Setting("by", group.name, "; ".join(filter(None, [reason, alike])), is_suggestion=True))
        elif settings and alike:
            reason = f"{alike}: name the column of their pattern, to keep its rows in one split"
            settings.append(Setting("by", "COLUMN", reason, is_suggestion=True))
        return settings

    def _tuning(self) -> list[Setting]:
        return [
            Setting("method", "lora", "`full` trains all parameters: more memory, more forgetting"),
            Setting("rank", 16, "8 for a change of style, 64 or more for new knowledge"),
            Setting("alpha", 32, "usually twice the rank"),
        ]

    def _train(self) -> list[Setting]:
        rate = 1e-3 if self.base.has_encoder else 2e-4
        share = 1 - sum(setting.value for setting in self._split() if setting.key in HELD_OUT)
        return [
            Setting("learning_rate", rate, "for LoRA; about 1e-5 for full fine-tuning"),
            *numbers.training_numbers(
                round(share * len(self.sample.rows)), is_text=self._is_text, is_all=self.sample.is_all
            ),
        ]

    def _evaluate(self) -> list[Setting]:
        limit = self._answer_limit
        test = next((setting.value for setting in self._split() if setting.key == "test"), None)
        test_rows = round(test * len(self.sample.rows)) if test and self.sample.is_all else numbers.MANY
        if self.kind is None:
            metrics = [
                Setting("metrics", ["perplexity", "token_accuracy"], "how well the model predicts unseen documents"),
                Setting("primary", "perplexity", "lower is better; a decrease counts as a gain"),
            ]
        else:
            metrics = [
                Setting("metrics", list(self.kind.metrics)),
                Setting("primary", self.kind.primary, self.kind.reason),
            ]
        return [*metrics, numbers.evaluated_rows(test_rows, limit.value), limit]


def _with_instruction(layout: Layout, kind: AnswerKind | None) -> Layout:
    """Return the layout with an instruction in the prompt, for rows without one: the base has to know the task too."""
    prompt, response = layout.settings.get("prompt", ""), layout.settings.get("response", "").strip("{}")
    name = prompt.strip().strip("{}")
    if kind is None or leaf_name(name) not in _TEXTS:
        return layout
    reason = "the instruction is ours: without one, the base could not know the task"
    if leaf_name(response).rstrip("0123456789") in _SUMMARIES:
        prompt = f"Summarize the following {leaf_name(name)}.\n\n{prompt}"
    elif 1 < len(kind.labels) <= _MAX_LABELS_NAMED and not any(label.isdigit() for label in kind.labels):
        labels = ", ".join(sorted(kind.labels)).replace("{", "{{").replace("}", "}}")
        prompt = f"{prompt.rstrip()}\n\nAnswer with one of: {labels}" + prompt[len(prompt.rstrip()) :]
    else:
        return layout
    reasons = layout.reasons | {"prompt": "; ".join(filter(None, [reason, layout.reasons.get("prompt")]))}
    return replace(layout, settings=layout.settings | {"prompt": prompt}, reasons=reasons)


def _filters(layout: Layout, sample: Sample) -> list[Setting]:
    """Return the filters that leave out rows with an empty cell, which could not be used."""
    if not layout.incomplete:
        return []
    counts = [f"{len(sample.rows) - len(layout.columns[name].values):,} without `{name}`" for name in layout.incomplete]
    rules = [{"column": name, "matches": r"\S"} for name in layout.incomplete]
    return [Setting("filters", rules, f"leaves out rows with an empty cell: {', '.join(counts)} of {sample.size}")]


def _rename(layout: Layout, sample: Sample) -> dict[str, Any]:
    names = {path.split(".")[0] for path in layout.used}
    used = {old: new for old, new in sample.rename.items() if new in names}
    return {"rename": used} if used else {}


def _provisional(source: dict[str, Any], layout: Layout, base: Base) -> Recipe:
    """Return a recipe that uses rows of any length, to measure them."""
    rules = [{"column": name, "matches": r"\S"} for name in layout.incomplete]
    split = {"split": {"column": layout.split.name}} if layout.split else {}
    data = {"source": source, **layout.settings, "filters": rules, **split, **_ANY_LENGTH}
    target = {"max_target_tokens": _UNLIMITED} if base.has_encoder else {}
    return Recipe.model_validate({
        "name": "draft", "model": {"base": base.reference, "chat_markup": base.chat_markup},
        "data": {**data, **target}, "tuning": {"method": "lora"}, "train": {"learning_rate": 1e-4},
        "evaluate": {"metrics": ["exact_match"], "primary": "exact_match"},
    })  # fmt: skip


def _name(data: str) -> str:
    """Return a name for the run and the model: that of the file, without its extension."""
    stem = Path(data.rstrip("/")).name.partition(".")[0] or "my-run"
    words = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    return re.sub(r"-?train(ing)?$", "", words)[:60] or "my-run"
