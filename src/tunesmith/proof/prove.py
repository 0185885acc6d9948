"""Prove that an engine still gives the answers of a model."""

from pathlib import Path

from tunesmith.core.errors import NotProved
from tunesmith.engines.base import Engine
from tunesmith.evaluate.run_rows import RunRows
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.proof.answers import ask, check_answers, check_verdict
from tunesmith.proof.checks import ask_scores, check_ids, check_logits, check_template
from tunesmith.proof.hints import hint_for
from tunesmith.proof.quantized_base import check_base
from tunesmith.proof.questions import find_rows, questions_about
from tunesmith.proof.record import Proof
from tunesmith.proof.reference import Reference
from tunesmith.proof.tolerances import tolerance_for, tolerance_for_bits


def prove(
    model: ModelFolder, engine: Engine, *, type: str, rows: RunRows | str | None = None, max_loss: float | None = None
) -> Proof:
    """Compare an engine with a model computed in fp32, on probes and on the test rows of the run that trained it.

    The checks are of the ids of texts, of the prompts of conversations, of the logits, of the greedy answers and their
    ends, and of the scores of the answers; for an adapter that was trained on a quantized base, also of its base. One
    that the engine offers no way to make is recorded as not possible.

    Args:
        model: the model of the verdict.
        engine: the program that runs the exported model.
        type: the type of the engine's weights, which decides the limits (`tolerances.py`).
        rows: the test rows, or why none are asked; by default those of the model's run, if it is at hand.
        max_loss: the loss in the primary metric that must be excluded, in its unit; by default a loss must only not be
            shown.

    Raises:
        RecipeError: there is no such type, or the rows are of a run with which this model cannot be compared.
        DataError: the rows do not fill the model's prompt template.
        TunesmithError: the engine cannot be asked.
        DoesNotFit: the model does not fit in memory in fp32.
    """
    of_type = tolerance_for(type)
    questions = questions_about(model, find_rows(model) if rows is None else rows)
    reference = Reference(model, questions)
    quantization = reference.quantization
    # An export has the weights of the base's files, not the quantized ones that the adapter was trained on.
    tolerance = of_type if quantization is None else of_type.looser(tolerance_for_bits(quantization.bits))
    try:
        of_ids, of_template = check_ids(engine, questions), check_template(engine, questions)
        scores = ask_scores(engine, reference)
        of_weights = [check_logits(engine.name, scores, reference, tolerance)]
        if quantization is not None:
            of_weights.append(check_base(model, scores, reference, of_type))
        asked = ask(engine, questions, reference)
        of_answers = check_answers(asked, questions, reference, tolerance)
        of_scores, verdict = check_verdict(engine.name, asked, questions, reference, max_loss=max_loss)
    finally:
        reference.close()
    return Proof(
        model=_public_name(model),
        model_digest=reference.model_digest,
        engine=engine.name,
        type=type,
        reference=reference.conditions,
        rows=len(questions.rows.examples) if questions.rows else 0,
        checks=(of_ids, of_template, *of_weights, of_answers, of_scores),
        verdict=verdict,
        versions=reference.versions,
    )


def require_proved(proof: Proof) -> None:
    """Raise NotProved if a proof did not pass."""
    if not proof.passed:
        failed = ", ".join(check.name for check in proof.failed)
        message = (
            f"does not give the answers of {proof.model}: {failed} failed" if failed else "nothing could be proved"
        )
        raise NotProved(message, where=f"{proof.engine} ({proof.type})", hint=hint_for(proof))


def _public_name(model: ModelFolder) -> str:
    """Return a model's reference, or the name of its folder: the record may be published."""
    if model.pin is not None and model.pin.kind in ("registry", "hub", "pypi"):
        return model.reference
    return Path(model.pin.at if model.pin else model.path).name
