"""The comparison as text for a terminal: verdict, metrics and some rows, without terminal control characters."""

from collections.abc import Mapping, Sequence

from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Comparison, Health, Verdict
from tunesmith.report import sections, wording
from tunesmith.report.collect import collect
from tunesmith.report.unit import NONE, unit_of
from tunesmith.report.view import AnswerRow, ModelAnswer
from tunesmith.report.wording import visible

_OUTCOMES = {"fixed": "better", "broken": "worse", "right": "both right", "wrong": "both wrong", "even": "equal"}
_ORDER = {"broken": 0, "fixed": 1}  # the other outcomes follow
_PROMPT_LINES = 4
_ANSWER_LINES = 12


def side_by_side(run: RunDir, rows: int) -> str:
    """Return the verdict, the metrics and the answers to `rows` rows; those that got worse or better come first."""
    view = collect(run)
    blocks = ["\n".join([wording.headline(view), *wording.incumbent_sentences(view)])]
    if verdict := view.verdict:
        guards = [f"guard {'passed' if g.passed else 'FAILED'}: {wording.guard_sentence(g)}" for g in verdict.guards]
        tables = [_metric_lines(verdict.metrics), _seed_lines(verdict)]
        tables += [wording.run_corpus_sentences(view), _group_lines(verdict)]
        sets = [
            [*_metric_lines(found.metrics, title=wording.set_title(name, found)), *_problem_lines(found.health)]
            for name, found in verdict.also.items()
        ]
        reasons = [wording.scope_sentence(verdict.primary), *wording.other_reasons(verdict)]
        blocks += map("\n".join, [reasons, *tables, *sets, guards, _problem_lines(verdict.health)])
    if sentence := wording.checkpoint_sentence(view.training):
        blocks.append(f"{sentence}.")
    if view.answers and rows > 0:
        shown = sorted(view.answers.rows, key=lambda answer: _ORDER.get(answer.outcome, len(_ORDER)))[:rows]
        blocks += [_answer_text(answer) for answer in shown]
        hidden = len(view.answers.rows) - rows
        if hidden > 0:
            blocks.append(f"{wording.count(hidden)} more rows")
    blocks += view.problems
    return visible("\n\n".join(block for block in blocks if block)) + "\n"


def _metric_lines(metrics: Mapping[str, Comparison], title: str = "metric") -> list[str]:
    """Return a table of comparisons; `title` heads the column of their names."""
    head = [title, "base", "tuned", "gain", f"{wording.confidence(next(iter(metrics.values())))} interval", ""]
    body = []
    for found in metrics.values():
        unit = unit_of(found)
        scores = [unit.value(found.base), unit.value(found.tuned), unit.change(found.gain)]
        direction = "" if found.higher_is_better else "lower is better"
        body.append([wording.metric_label(found.metric), *scores, unit.interval(found.low, found.high), direction])
    return table([head, *body])


def _seed_lines(verdict: Verdict) -> list[str]:
    """Return a table of the models of all seeds, if several were trained."""
    if not verdict.primary.seeds:
        return []
    unit = unit_of(verdict.primary)
    rows = [["seed", "tuned", "gain", "interval over rows", ""]]
    for number, seed in enumerate(verdict.primary.seeds):
        scores = [unit.value(seed.tuned), unit.change(seed.gain), unit.interval(seed.low, seed.high)]
        rows.append([f"{seed.seed}", *scores, "" if number else "the run's own model"])
    return table(rows)


def _group_lines(verdict: Verdict) -> list[str]:
    """Return how the groups of rows changed, and a table of those that fell most."""
    lines = wording.group_sentences(verdict)
    if verdict.grouping and verdict.grouping.fell:
        unit = unit_of(verdict.primary)
        rows = [["group that fell", "rows", "base", "tuned", "gain", ""]]
        for change in verdict.grouping.fell:
            scores = [unit.value(change.base), unit.value(change.tuned), unit.change(change.gain)]
            rows.append([change.group, wording.count(change.rows), *scores, ""])
        lines += table(rows)
    return lines


def _problem_lines(health: Health) -> list[str]:
    """Return the problems of answers that occurred: scores mean little if answers were cut off."""
    lines: dict[tuple[str, ...], str] = {}
    for name, cells, _ in sections.pair_problems(health):
        (base, of_base), (tuned, of_tuned) = cells
        if {base, tuned} - {"0", NONE}:
            lines.setdefault((base, tuned), f"{name}: base {base} ({of_base}), tuned {tuned} ({of_tuned})")
    return list(lines.values())


def table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Align columns: the first left, the last not at all, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:-1]), line[-1]] for line in lines)
    return ["  ".join(cells).rstrip() for cells in aligned]


def _answer_text(answer: AnswerRow) -> str:
    outcome = _OUTCOMES.get(answer.outcome, "")
    parts = [f"row {answer.number}{f'  ({outcome})' if outcome else ''}"]
    parts.append(prompt_field(answer.prompt))
    if answer.reference is not None:
        parts.append(answer_field("reference", answer.reference))
    parts += [
        answer_field(name, prediction_text(side)) for name, side in zip(("base", "tuned"), answer.sides, strict=True)
    ]
    return "\n".join(parts)


def prediction_text(side: ModelAnswer | None) -> str:
    """Return an answer with its problems in parentheses: it failed, is empty or was cut off."""
    if side is None:
        return "(not answered yet)"
    notes = [note for note in (sections.answer_note(side), _sample_note(side)) if note]
    text = side.text if side.text.strip() or not notes else ""
    return " ".join([*([text] if text else []), *(f"({note})" for note in notes)])


def _sample_note(side: ModelAnswer) -> str:
    return f"sample 1 of {1 + len(side.more)}" if side.more else ""


def prompt_field(prompt: str) -> str:
    """Return the last lines of a prompt."""
    return answer_field("prompt", "\n".join(prompt.strip("\n").split("\n")[-_PROMPT_LINES:]))


def answer_field(name: str, text: str) -> str:
    """Return a name with the first lines of a text next to it."""
    lines = visible(text).split("\n")
    if len(lines) > _ANSWER_LINES:
        lines = [*lines[:_ANSWER_LINES], f"({len(lines) - _ANSWER_LINES} more lines)"]
    return "\n".join(f"  {name if index == 0 else '':<10} {line}".rstrip() for index, line in enumerate(lines))
