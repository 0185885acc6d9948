"""What to do about a proof that failed."""

from tunesmith.proof.record import ANSWERED, Proof
from tunesmith.proof.tolerances import tolerance_for

_QUANTIZED = "these weights lost the tuning: use --type q8_0, or the base's own file with --adapter-only"
_HINTS = {
    "ids": "the file has another pre-tokenizer, other types of control tokens, or another vocabulary than the model",
    "template": "the chat template is missing or another one, or a token is added before the prompt",
    "logits": "the weights or a constant of the model differ (rope base, epsilon of a norm, order of q and k)",
    "base": "the weights are those of neither base; a merge must use those of the base's files",
    "answers": "the token that ends an answer may be another one: compare eos in the file with the model's",
    "verdict": "the answers score worse than the model's: compare them by `tunesmith compare`",
}


def hint_for(proof: Proof) -> str:
    """Return the usual cause of the first failed check; for quantized weights, what to use instead.

    If an export is one of the two models of an adapter that was trained on a quantized base, its conversion is right.
    """
    failed = [check.name for check in proof.failed]
    if not failed:
        return "the engine offers no way to compare logits, or answers that must be equal; limit the loss by --max-loss"
    measures = [measure for check in proof.failed for measure in check.measures]
    if any(measure.name == ANSWERED and not measure.passed for measure in measures):
        return "the engine refused prompts, usually because its context is too short: give it a longer one"
    if {"ids", "template"} & set(failed):  # which depend on no weights
        return _HINTS[failed[0]]
    quantization, statuses = proof.reference.get("base_quantization"), {c.name: c.status for c in proof.checks}
    if quantization and statuses.get("base") == "passed":
        return f"the adapter needs the base in {quantization}, as trained: use `tunesmith serve`, or train with `lora`"
    is_quantized = tolerance_for(proof.type).max_gap is None
    return _QUANTIZED if is_quantized else _HINTS[failed[0]]
