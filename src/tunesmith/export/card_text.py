"""The paragraphs, lists and tables of a model card."""

from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.architecture.base_model import language_config
from tunesmith.architecture.linear_layers import first_number
from tunesmith.core.verdict import Verdict
from tunesmith.export.base_facts import BaseFacts
from tunesmith.export.formats import FORMATS
from tunesmith.export.markdown import Markdown, code, escape, table, without_folders
from tunesmith.export.provenance import Provenance
from tunesmith.export.usage import Target
from tunesmith.fetch.reference import ModelFolder
from tunesmith.proof.record import Proof
from tunesmith.proof.text import as_table, verdict_sentence
from tunesmith.recipe.schema import Data
from tunesmith.report import wording
from tunesmith.report.unit import unit_of

_TUNING = ("method", "bits", "rank", "alpha", "target", "rslora", "dora")
_TRAIN = ("optimizer", "learning_rate", "schedule", "examples_per_step")
_METHODS = {"lora": "LoRA", "qlora": "QLoRA (its base was quantized in training)", "full": "full tuning"}


def summary(target: Target, facts: Provenance, base: BaseFacts | None) -> str:
    """Return a sentence about the model: its base, its tuning and its format."""
    method = str((facts.recipe.get("tuning") or {}).get("method"))
    origin = f" {base.name}" if base is not None else " a model"
    tuned = f"This is{origin}, tuned with {_METHODS.get(method, 'tunesmith')}" if facts.recipe else f"This is{origin}"
    rows = f" on {wording.count(facts.rows['train'])} rows of {_sources(facts)}" if facts.rows.get("train") else ""
    return f"{tuned}{rows}, as {FORMATS[target.to].description}."


def verdict_text(verdict: Verdict | None) -> Markdown:
    """Return the verdict with its numbers, its guards and its limits."""
    if verdict is None:
        return Markdown("It was not measured: there is no verdict on this model.")
    blocks = [escape(wording.verdict_sentence(verdict)), _metric_table(verdict)]
    points = [f"Guard {_outcome(guard.passed)}: {wording.guard_sentence(guard)}." for guard in verdict.guards]
    points += [*_conditions(verdict), wording.scope_sentence(verdict.primary), *wording.group_sentences(verdict)]
    points += [*map(without_folders, wording.other_reasons(verdict)), *_health(verdict), _UNMEASURED]
    blocks.append(Markdown("\n".join(f"- {escape(point)}" for point in points)))
    return Markdown("\n\n".join(blocks))


_UNMEASURED = (
    "The verdict is about rows like the test rows, asked with the prompt below. It does not cover other questions, "
    "safety, or which answers people prefer."
)


def _metric_table(verdict: Verdict) -> Markdown:
    """Return a table of all metrics, also those of further held-out sets."""
    sets = [("", verdict.metrics), *((f" on {name}", found.metrics) for name, found in verdict.also.items())]
    rows = []
    for where, metrics in sets:
        for found in metrics.values():
            unit = unit_of(found)
            scores = [unit.value(found.base), unit.value(found.tuned), unit.change(found.gain)]
            label = wording.metric_label(found.metric) + where
            rows.append([label, *scores, unit.interval(found.low, found.high), wording.count(found.rows)])
    interval = f"{wording.confidence(verdict.primary)} interval"
    return table(["metric", "base", "tuned", "gain", interval, "rows"], rows)


def decoding(recipe: Mapping[str, Any]) -> str:
    """Return how the judged answers were generated."""
    evaluate = recipe.get("evaluate") or {}
    chosen = {key: value for key, value in (evaluate.get("sampling") or {}).items() if value is not None}
    if chosen.get("temperature"):
        return "sampled with " + ", ".join(f"{key} {value}" for key, value in chosen.items())
    beams = evaluate.get("beams") or 1
    return f"by a beam search with {beams} beams" if beams > 1 else "greedily (temperature 0)"


def length_limits(model: ModelFolder, data: Data | None) -> str:
    """Return the longest example of the training and the positions of the model, as a sentence."""
    positions = first_number(language_config(model.root.path), "max_position_embeddings", "n_positions")
    has = f"The model has {wording.count(positions)} positions." if positions else ""
    if data is None:
        return has
    return f"Training examples had at most {wording.count(data.max_tokens_per_example)} tokens. {has}"


def proof_text(proof: Proof | None, forced: str | None = None) -> Markdown:
    """Return whether the exported files are still the model that was judged, and how that was found out."""
    if proof is None:
        reason = f" They were published all the same: {escape(without_folders(forced))}." if forced else ""
        return Markdown(
            f"It was not proved that these files answer like the model that was judged.{reason} `tunesmith prove` "
            "compares a running server with it."
        )
    rows = f" and {wording.count(proof.rows)} test rows" if proof.rows else ""
    asked = f"{proof.engine} was asked the probes{rows}, and compared with the model computed in fp32"
    sentence = f"{'Yes' if proof.passed else '**No**'}: {escape(asked)} (type {escape(proof.type)})."
    if proof.forced is not None:
        sentence += f" It was published all the same: {escape(without_folders(proof.forced))}."
    checks = [(check, status, without_folders(measured)) for check, status, measured in as_table(proof)]
    blocks = [Markdown(sentence), table(["check", "result", "measured"], checks)]
    if proof.verdict is not None:
        blocks.append(escape(f"{verdict_sentence(proof)}."))
    return Markdown("\n\n".join(blocks))


def training(model: ModelFolder, facts: Provenance, base: BaseFacts | None) -> Iterator[tuple[str, str]]:
    """Yield names and values: base, licence, data, settings and versions of the training."""
    if base is not None:
        revision = f", revision {base.revision}" if base.revision else ""
        note = f" ({base.difference or 'not on the hub'})" if not base.is_same else ""
        yield "base", f"{base.name}{revision}{note}"
        yield "licence of the base", base.licence_name or "unknown: neither its files nor its card state one"
    if digest := model.card.get("base_digest"):
        yield "digest of the base", code(str(digest))
    if facts.version:
        yield "version in the registry", facts.version
    if facts.rows:
        counts = ", ".join(f"{wording.count(number)} {split}" for split, number in facts.rows.items())
        yield "data", f"{_sources(facts)}; rows: {counts}"
    if facts.data_digest:
        yield "digest of the prepared rows", code(facts.data_digest)
    tuning, train = facts.recipe.get("tuning") or {}, facts.recipe.get("train") or {}
    if tuning:
        yield "tuning", ", ".join(f"{key} {tuning[key]}" for key in _TUNING if tuning.get(key))
    if train:
        steps = [f"{wording.count(facts.steps)} steps"] if facts.steps else []
        yield "training", ", ".join([*steps, *(f"{key} {train[key]}" for key in _TRAIN if train.get(key) is not None)])
    if "seed" in facts.recipe:
        yield "seed", str(facts.recipe["seed"])
    if facts.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())


def file_table(files: Mapping[str, Mapping[str, Any]]) -> Markdown:
    """Return a table of files with their sizes and digests."""
    rows = [[code(name), f"{entry['bytes']:,}", code(entry["sha256"])] for name, entry in files.items()]
    return table(["file", "bytes", "SHA-256"], rows)


def _sources(facts: Provenance) -> str:
    return ", ".join(map(without_folders, facts.source_names)) or "data that is not recorded"


def _outcome(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _conditions(verdict: Verdict) -> Iterator[str]:
    """Yield the precision in which the models were compared; the proof compares in fp32."""
    precision, quantization = (verdict.conditions.get(key) for key in ("precision", "quantization"))
    if precision:
        weights = f", with weights in {quantization}" if quantization else ""
        yield f"Both models were computed in {precision}{weights}. Some answers differ in another precision."


def _health(verdict: Verdict) -> Iterator[str]:
    """Yield the problems of the tuned model's answers."""
    tuned = verdict.health.get("tuned") or {}
    rows = tuned.get("rows")
    for key, words in (("cut_off", "did not stop within the limit"), ("empty", "were empty"), ("failed", "failed")):
        if rows and tuned.get(key):
            yield f"{wording.count(tuned[key])} of {wording.count(rows)} answers of the tuned model {words}."
