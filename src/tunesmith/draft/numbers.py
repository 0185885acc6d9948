"""Choose the numbers of a recipe from its rows, each with its reason."""

import math
import re
from collections import Counter
from collections.abc import Sequence

from tunesmith.core.errors import DataError
from tunesmith.core.rundir import HELD_OUT
from tunesmith.data.split import assign_split, normalize_text
from tunesmith.draft.measure import Measured
from tunesmith.draft.yaml_text import Setting

_TOO_LONG_SHARE = 0.005
"""The share of rows that may be longer than the limit: half of what `max_dropped_fraction` allows by default."""

_ESTIMATE_MARGIN = 1.3
_MAX_NEW_TOKENS = 512
_TEXT_BLOCK = 1024
_FRACTIONS = ((0.02, 0.05), (0.05, 0.10), (0.10, 0.20), (0.15, 0.30), (0.20, 0.40))
_SEED = 0

MANY = 10**9
"""More rows than any number that a recipe chooses."""

_MIN_ROWS_TO_DIFFER = 50


def answer_limit(measured: Measured, *, exact: bool) -> Setting:
    """Return `evaluate.max_new_tokens`: room for almost every answer of the rows, if they are not very long."""
    usual = _percentile(measured.answer_lengths, 0.99)
    wanted = max(16, _rounded(usual * (1.1 if exact else _ESTIMATE_MARGIN) + 4, 16))
    reason = f"99 % of the answers have at most {usual:,} tokens"
    if wanted > _MAX_NEW_TOKENS:
        reason += "; shorter, to save time: answers that reach the limit are counted"
    return Setting("max_new_tokens", min(wanted, _MAX_NEW_TOKENS), f"{reason}{_how(exact)}")


def length_limits(measured: Measured, *, room: int | None, is_text: bool, exact: bool) -> list[Setting]:
    """Return `data.max_tokens_per_example`, and what happens to longer rows if there are many.

    Args:
        room: the tokens of a row that the model's context length allows; None if it is unknown.
        is_text: whether the rows are documents, which are divided into blocks.
        exact: whether the model's own tokenizer has counted.

    Raises:
        DataError: more than half of the rows are longer than the model's context length.
    """
    lengths, margin = measured.lengths, 1.0 if exact else _ESTIMATE_MARGIN
    usual, longest = _percentile(lengths, 1 - _TOO_LONG_SHARE), lengths[-1]
    wanted = _TEXT_BLOCK if is_text and longest > _TEXT_BLOCK else longest if longest <= 1.5 * usual else usual
    limit = max(64, _rounded(wanted * margin, 64 if wanted * margin <= 1024 else 256))
    median = _percentile(lengths, 0.5)
    reason = f"the median row has {median:,} tokens, 99.5 % have at most {usual:,}, the longest {longest:,}"
    if room is not None and limit > room:
        limit, reason = room, f"{reason}; the model's context length allows no more"
    settings = [Setting("max_tokens_per_example", limit, reason + _how(exact))]
    above = sum(length * margin > limit for length in lengths)
    if is_text and above:
        return [*settings, Setting("too_long", "split", "longer documents become blocks, so that all is trained on")]
    unusable = measured.problems.total() + above
    if 2 * above > measured.rows:
        problem = f"{above:,} of {measured.rows:,} rows are longer than the {limit:,} tokens that the model allows"
        raise DataError(problem, hint="choose a model with a longer context with --model", code="too-many-dropped")
    if unusable > _TOO_LONG_SHARE * measured.rows:
        reasons = measured.problems + Counter({"longer than the limit": above})
        listed = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(3) if count)
        share = min(0.95, _rounded(130 * unusable / measured.rows + 1, 1) / 100)
        settings.append(Setting("max_dropped_fraction", share, f"of {measured.rows:,} rows: {listed}"))
    return settings


def split_fractions(measured: Measured, count: int, held_out: Sequence[str], *, is_all: bool) -> list[Setting]:
    """Return `data.split`: the fractions for those of `valid` and `test` that have no source of their own.

    Args:
        count: the number of rows in the sample.
        is_all: whether the sample is the whole source.

    Raises:
        DataError: there are too few different prompts to divide.
    """
    names = [name for name in HELD_OUT if name not in held_out]
    if not names:
        return []
    first = 0 if not is_all else 1 if count >= 1000 else 2 if count >= 100 else 3
    for valid, test in _FRACTIONS[first:]:
        fractions = {"valid": valid if "valid" in names else 0.0, "test": test if "test" in names else 0.0}
        found = {assign_split(group, **fractions, seed=_SEED) for group in measured.groups}
        if found == {"train", *names}:
            reasons = {"valid": "for validation during training", "test": "for the verdict"}
            about = {name: round(fractions[name] * count) for name in names}
            more = "" if is_all else "or more "
            return [
                Setting(name, fractions[name], f"about {about[name]:,} rows {more}{reasons[name]}{_few(name, about)}")
                for name in names
            ]
    prompts = len(set(measured.groups))
    problem = f"the {len(measured.groups):,} usable rows have {prompts:,} different prompts, too few to set some aside"
    hint = "add rows; 100 for the verdict and as many for training are little"
    raise DataError(problem, hint=hint, code="empty-split")


def _few(name: str, about: dict[str, int]) -> str:
    return "; below 100, it will rarely be certain" if name == "test" and about[name] < 100 else ""


def training_numbers(rows: int, *, is_text: bool, is_all: bool) -> list[Setting]:
    """Return `train.epochs` and `train.examples_per_step` for a number of training rows."""
    epochs = 1 if is_text or rows > 20_000 or not is_all else 2 if rows > 1_000 else 3
    per_step = 4 if rows < 200 else 8 if rows < 2_000 else 16
    steps = math.ceil(rows / per_step) * epochs
    why = "after two, a model knows documents by heart" if is_text else "fewer if the validation loss rises again"
    known = f"about {steps:,} steps with these rows" if is_all else f"{steps:,} steps or more"
    return [Setting("epochs", epochs, why), Setting("examples_per_step", per_step, f"rows per optimizer step: {known}")]


def evaluated_rows(test_rows: int, longest_answer: int) -> Setting:
    """Return `evaluate.rows`: more if answers are short, because these take little time."""
    rows = 500 if longest_answer <= 32 else 200
    if test_rows <= rows:
        return Setting("rows", rows, "all test rows are answered")
    return Setting("rows", rows, "of the test rows; more take longer and narrow the interval")


def differing_in_numbers(prompts: Sequence[str]) -> str:
    """Return a remark on prompts that differ from another one in numbers only; empty if they are few."""
    distinct = {normalize_text(prompt) for prompt in prompts}
    alike = len(distinct) - len({re.sub(r"\d+", "0", prompt) for prompt in distinct})
    if len(distinct) < _MIN_ROWS_TO_DIFFER or alike < 0.2 * len(distinct):
        return ""
    return f"{alike:,} of {len(distinct):,} prompts differ from another in numbers only"


def identical_rows(measured: Measured) -> str:
    """Return a remark on rows that repeat another one; empty if they are few."""
    rows = len(measured.contents)
    copies = rows - len(set(measured.contents))
    return f"{copies:,} of {rows:,} rows repeat another row" if copies > 0.01 * rows else ""


def _percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def _rounded(value: float, multiple: int) -> int:
    return multiple * math.ceil(round(value / multiple, 6))  # 0.14 * 100 is not 14


def _how(exact: bool) -> str:
    return "" if exact else " (estimated from the text, 3.5 bytes per token: the model's tokenizer is not here yet)"
