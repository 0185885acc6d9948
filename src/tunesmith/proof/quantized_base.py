"""Which base an engine has below an adapter that was trained on a quantized base.

Such an adapter is two models: on the quantized base, where it was trained and judged, and on the weights of the base's
files, which every merged folder has. The two differ, so the check of logits has the limits of the quantization. Within
these, a faulty export could pass. Therefore the engine must also be one of the two, within the limits of its own type.
"""

from itertools import chain

from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.proof.checks import EngineScores, distances
from tunesmith.proof.record import Check, Measure
from tunesmith.proof.reference import Reference, open_in_fp32, token_scores
from tunesmith.proof.tolerances import Tolerance

BASE = "base"


def check_base(model: ModelFolder, scores: EngineScores | None, reference: Reference, tolerance: Tolerance) -> Check:
    """Compare the engine's distributions with those of the adapter on both bases, in fp32.

    Args:
        model: an adapter that was trained on a quantized base.
        scores: the distributions at the tokens of the reference's answers; None if the engine does not give them.
        tolerance: the limits of the engine's type.
    """
    if scores is None or not scores.wanted:
        return Check(BASE, impossible="there are no log-probabilities to compare")
    on_files = open_in_fp32(model, merged=True)
    prompts = [reference.answers[place].prompt for place in scores.wanted]
    pairs = zip(prompts, scores.wanted.values(), strict=True)
    from_files = list(chain.from_iterable(token_scores(on_files, prompt, ids) for prompt, ids in pairs))
    sides = {
        f"on the base in {reference.quantization}, as trained": reference.scores_of(scores.wanted),
        "on the base's files": from_files,
    }
    found = {name: distances(scores, ours) for name, ours in sides.items()}
    nearest = min(found, key=lambda name: found[name].mean_kl)
    measures = [
        Measure(f"{measure.name}, {name}", measure.value, measure.of)
        for name, distance in found.items()
        for measure in distance.measures(None)
    ]
    limits = (
        Measure("nearest of the two: mean KL divergence per token (nats)", found[nearest].mean_kl,
                at_most=tolerance.mean_kl),
        Measure("nearest of the two: largest difference of a log-probability (nats)", found[nearest].largest,
                at_most=tolerance.max_difference),
    )  # fmt: skip
    return Check(BASE, (*measures, *limits), (f"the engine gives the adapter {nearest}",))
