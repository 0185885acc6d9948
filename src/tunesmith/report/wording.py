"""Numbers, names and verdicts as text. Report and terminal take their sentences from here, so that they agree."""

import re
from collections.abc import Sequence

from tunesmith.core.progress import format_bytes, format_duration
from tunesmith.core.stages import EVALUATE, stage_named
from tunesmith.core.verdict import Comparison, Guard, SetResult, Verdict
from tunesmith.report.unit import MINUS, NONE, Unit, unit_of
from tunesmith.report.view import RunView, Training
from tunesmith.scoring.metrics import find_metric
from tunesmith.scoring.samples import split_pass
from tunesmith.scoring.verdict import failed_text, is_non_inferiority, needed_text, reasons_of

CONCLUSIONS = {
    "better": "The tuned model is better",
    "not_better": "The tuned model is not better",
    "cannot_tell": "The data does not show whether the tuned model is better",
}
_NON_INFERIORITY = {
    "better": "The tuned model is not worse",
    "not_better": "The tuned model is worse",
    "cannot_tell": "The data does not show whether the tuned model is worse",
}
_BIDI_AND_HIDDEN = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0x200B, 0xFEFF]
_VISIBLE: dict[int, int | str] = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
_VISIBLE |= {code: f"\u27e8U+{code:04X}\u27e9" for code in [*range(0x80, 0xA0), *_BIDI_AND_HIDDEN]}
_VISIBLE[0x7F] = 0x2421
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """Replace control characters, text-direction overrides and lone surrogates by symbols that name them."""
    return _SURROGATE.sub("\ufffd", text.replace("\r\n", "\n")).translate(_VISIBLE)


def visible_token(text: str) -> str:
    """Return a token's text with its tabs and line breaks marked; ‥ if the token only completes a character."""
    return visible(text).replace("\t", "\u2192\t").replace("\n", "\u21b5\n") or "\u2025"


def metric_label(metric: str) -> str:
    """Return the label of a metric; of a custom metric, the name of its function."""
    if found := split_pass(metric):
        return f"{metric_label(found[0])}, pass@{found[1]}"
    name = re.split("[.:]", metric)[-1]
    known = find_metric(name)
    return known.label if known else visible(name).replace("_", " ")


def checkpoint_sentence(training: Training) -> str:
    """Return which checkpoint was selected and by which metric, and whether training stopped early.

    Empty if the run did not record it.
    """
    step, metric, best = (training.facts.get(key) for key in ("best_step", "chosen_by", "best_value"))
    if step is None or metric is None:
        return ""
    if best is None:
        return f"There are no validation rows, so the last checkpoint was selected, step {count(step)}"
    curve = [value for _, value in training.scores.get(metric, ())]
    values = [Unit.of(metric, *curve, best).value(best)]
    _, loss, accuracy = next((point for point in training.valid if point[0] == step), (step, None, None))
    if loss is not None and metric != "loss":
        values.append(f"loss {loss:.3f}")
    if accuracy is not None and metric != "token_accuracy":
        values.append(f"token accuracy {percent(accuracy, 1)}")
    name = metric_label(metric)
    text = f"The checkpoint of step {count(step)} is the best on the validation rows by {name} ({', '.join(values)})"
    reason = training.facts.get("stopped_early")
    return f"{text}; training stopped at step {count(training.facts['steps'])}: {visible(reason)}" if reason else text


def count(value: float | None) -> str:
    """Return a whole number with separators: 12,345."""
    return NONE if value is None else f"{round(value):,}"


def short_count(value: float | None) -> str:
    """Return a large number in short form: 138.6 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value is not None and value >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.1f} {unit}"
    return count(value)


def block_text(block: Sequence[int] | None) -> str:
    """Return which block of its document a row is, as text after the row's number; empty if it is a whole document."""
    return f", block {block[0]} of {block[1]}" if block else ""


def percent(part: float | None, whole: float | None) -> str:
    """Return a part of a whole in percent; shares below 0.1 % get two decimals."""
    if part is None or not whole:
        return NONE
    value = 100 * part / whole
    return f"{value:.2f} %" if 0 < value < 0.1 else f"{value:.1f} %"


def duration(seconds: float | None) -> str:
    """Return a time span such as 3h 20m; a dash if it is unknown."""
    return NONE if seconds is None else format_duration(seconds)


def file_size(count: int | None) -> str:
    """Return a number of bytes such as 1.2 GB; a dash if it is unknown."""
    return NONE if count is None else format_bytes(count)


def confidence(comparison: Comparison) -> str:
    """Return the confidence of an interval: 95 %."""
    return f"{100 * comparison.confidence:.4g} %"


def verdict_sentence(verdict: Verdict) -> str:
    """Return the verdict as a sentence with its evidence: the scores, the gain, its interval and the rows."""
    primary = verdict.primary
    sentence = f"{_conclusion(primary)}: {_change(primary)} ({_evidence(primary)})"
    if primary.min_gain > 0:
        sentence += f"; the recipe asks for a gain above {unit_of(primary).points(primary.min_gain).lstrip('+')}"
    sentence += "."
    if primary.failed:
        sentence += f" {failed_text(primary)}."
    if primary.verdict == "cannot_tell" and (text := needed_text(primary)):
        sentence += f" {text[0].upper()}{text[1:]}."
    return sentence


def incumbent_sentences(view: RunView) -> list[str]:
    """Return the verdict against each version of the registry that the tuned model was compared with."""
    return [
        f"{CONCLUSIONS[primary.verdict]} than {name}: {_change(primary)} ({_evidence(primary)})."
        for name, primary in ((name, verdict.primary) for name, verdict in view.incumbents.items())
    ]


def scope_sentence(primary: Comparison) -> str:
    """Return what the interval of a verdict covers."""
    if not primary.seeds:
        return (
            "The interval covers the choice of test rows. It does not cover training: one seed was trained, and "
            "another may give another gain."
        )
    return (
        f"The interval covers the choice of test rows and training: {len(primary.seeds)} seeds were trained, and the "
        f"score of tuned is their mean. The run's own model is that of seed {primary.seeds[0].seed}."
    )


def seed_sentences(view: RunView) -> list[str]:
    """Return a sentence with the score of each seed and its gain, if several seeds were trained."""
    if view.verdict is None or not view.verdict.primary.seeds:
        return []
    primary = view.verdict.primary
    unit = unit_of(primary)
    scores = [f"{seed.seed}: {unit.value(seed.tuned)} ({unit.points(seed.gain)})" for seed in primary.seeds]
    return [f"{metric_label(primary.metric)} by seed: {', '.join(scores)}."]


def other_reasons(verdict: Verdict) -> list[str]:
    """Return the reasons of a verdict that `verdict_sentence` does not contain."""
    return [reason for reason in verdict.reasons if reason not in reasons_of(verdict.primary)]


def _conclusion(primary: Comparison) -> str:
    """Return the verdict in words; a negative `min_gain` asks only for a model that is not much worse."""
    if not is_non_inferiority(primary):
        return CONCLUSIONS[primary.verdict]
    allowed = unit_of(primary).points(primary.min_gain).lstrip(MINUS)
    return f"{_NON_INFERIORITY[primary.verdict]} than the base by more than {allowed} (non-inferiority)"


def group_sentences(verdict: Verdict) -> list[str]:
    """Return how rows are grouped, the interval without groups, and how many groups rose and fell."""
    grouping, primary = verdict.grouping, verdict.primary
    if grouping is None or primary.by_row is None:
        return []
    rows = f"Rows with the same `{grouping.by}`" if grouping.by else "Rows with the same prompt"
    by_row = unit_of(primary).interval(*primary.by_row)
    unchanged = grouping.groups - grouping.improved - grouping.worsened
    return [
        f"{rows} are not independent, so the interval is computed over the {count(grouping.groups)} groups; with every "
        f"row counted as independent it would be {by_row}.",
        f"Of the {count(grouping.groups)} groups, {count(grouping.improved)} rose, {count(grouping.worsened)} fell and "
        f"{count(unchanged)} did not change.",
    ]


def corpus_sentences(*verdicts: tuple[str, str, Verdict]) -> list[str]:
    """Return the corpus scores of the models of some verdicts, one sentence for each metric that has one.

    Args:
        verdicts: the name of the model in the place of the base, that of the other, and the verdict on the two.
    """
    found: dict[tuple[str, int, str], dict[str, float]] = {}  # pairs differ in answers if some failed
    for base, tuned, verdict in verdicts:
        for metric, scores in verdict.corpus.items():
            by_model = found.setdefault((metric, scores.answers, scores.signature), {})
            by_model |= {base: scores.base, tuned: scores.tuned}
    return [
        f"Corpus {metric_label(metric)} over {count(answers)} answers: "
        f"{', '.join(f'{name} {100 * score:.1f}' for name, score in by_model.items())} ({signature}). Compare it, not "
        "the mean over rows, with published numbers; it has no interval."
        for (metric, answers, signature), by_model in found.items()
    ]


def set_title(name: str, result: SetResult) -> str:
    """Return the title of the table of a further held-out set."""
    return f"{name} ({count(result.rows)} rows)"


def run_corpus_sentences(view: RunView) -> list[str]:
    """Return the corpus scores of a run's models, and of the versions of the registry that it was compared with."""
    own = [("base", "tuned", view.verdict)] if view.verdict else []
    return corpus_sentences(*own, *((name, "tuned", verdict) for name, verdict in view.incumbents.items()))


def guard_sentence(guard: Guard) -> str:
    """Return the change of a guard's metric, in the metric's own direction, and the change that the guard allows."""
    change, unit = guard.comparison, unit_of(guard.comparison)
    sign, worse = (1, "drop") if change.higher_is_better else (-1, "rise")
    interval, allowed = unit.interval(*sorted((sign * change.low, sign * change.high))), unit.points(guard.max_drop)
    where = "" if guard.set is None else f" on the {count(change.rows)} rows of {guard.set}"
    gain = f"{metric_label(change.metric)}{where} changed by {unit.points(sign * change.gain)} ({interval})"
    return f"{gain}; the guard allows a {worse} of {allowed.lstrip('+')}"


def pair_sentence(first: str, second: str, primary: Comparison) -> str:
    """Return the verdict on a pair of models, of which `first` has the place of the base, with its evidence."""
    if primary.verdict == "cannot_tell":
        conclusion = f"The data does not show whether {second} is better than {first}"
    else:
        worse = "worse than" if primary.high < 0 else "not better than"
        conclusion = f"{second} is {'better than' if primary.verdict == 'better' else worse} {first}"
    needed = f"; {text}" if (text := needed_text(primary)) else ""
    left_out = f"; {failed_text(primary)}" if primary.failed else ""
    return f"{conclusion}: {_change(primary)} ({_evidence(primary)}){needed}{left_out}."


def headline(view: RunView) -> str:
    """Return the sentence of the verdict; without one, which stage the run has not finished."""
    if view.verdict:
        return verdict_sentence(view.verdict)
    stage = next((stage for stage in view.stages if stage.state in ("missing", "unfinished")), None)
    activity = (stage_named(stage.name) if stage else EVALUATE).activity
    if stage is None or stage.state == "missing":
        return f"There is no verdict yet: the run stopped before {activity}."
    steps = view.training.steps if stage.name == "train" else ()
    so_far = f" ({count(steps[-1][0])} steps so far)" if steps else ""
    return f"There is no verdict yet: {activity} has not finished{so_far}."


def _change(primary: Comparison) -> str:
    base, tuned = unit_of(primary).value(primary.base), unit_of(primary).value(primary.tuned)
    if base == tuned:
        return f"{metric_label(primary.metric)} stayed at {base}"
    direction = "rose" if primary.tuned > primary.base else "fell"
    return f"{metric_label(primary.metric)} {direction} from {base} to {tuned}"


def _evidence(primary: Comparison) -> str:
    unit = unit_of(primary)
    direction = "" if primary.higher_is_better else "; lower is better"
    size = unit.points(primary.gain)
    if not primary.higher_is_better and primary.gain:
        size = f"{'better' if primary.gain > 0 else 'worse'} by {size.lstrip('+' + MINUS)}"
    rows = f"{count(primary.rows)} rows"
    if primary.groups < primary.rows:
        rows += f" in {count(primary.groups)} groups"
    if primary.seeds:
        rows += f" and {len(primary.seeds)} seeds"
    interval = unit.interval(primary.low, primary.high)
    return f"{size}, {confidence(primary)} interval {interval}, {rows}{direction}"
