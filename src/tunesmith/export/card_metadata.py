"""The metadata of a model card, which the hub reads: base, licence, tags, data and the result of the evaluation."""

from typing import Any

from tunesmith.core.verdict import Comparison
from tunesmith.export.base_facts import BaseFacts
from tunesmith.export.formats import FORMATS
from tunesmith.export.provenance import Provenance
from tunesmith.export.usage import Target
from tunesmith.report.wording import metric_label, visible


def card_metadata(target: Target, facts: Provenance, base: BaseFacts | None, *, is_chat: bool) -> str:
    """Return the metadata as a block of YAML between `---`.

    The result has the interval of the gain over the base, which a score alone does not tell.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task = "text2text-generation" if target.has_encoder else "text-generation"
    results = []
    if facts.verdict is not None:
        primary = facts.verdict.primary
        source = ", ".join(facts.source_names) or facts.name
        results.append(
            EvalResult(
                task_type=task,
                dataset_type=facts.hub_datasets[0] if len(facts.hub_datasets) == 1 else "private",
                dataset_name=visible(f"{source}, test split of the recipe"),
                dataset_split="test",
                dataset_revision=facts.data_digest,
                metric_type=primary.metric,
                metric_name=metric_label(primary.metric),
                metric_value=primary.tuned,
                metric_args=_interval(primary),
            )
        )
    method = (facts.recipe.get("tuning") or {}).get("method")
    tags = ["tunesmith", *([method] if method else []), *(["conversational"] if is_chat else [])]
    on_hub = base is not None and base.is_on_hub
    data = ModelCardData(
        model_name=visible(facts.name),
        base_model=base.name if base is not None and on_hub else None,
        base_model_relation=FORMATS[target.to].relation if on_hub else None,
        library_name=FORMATS[target.to].library,
        pipeline_tag=task,
        tags=tags,
        datasets=list(facts.hub_datasets) or None,
        eval_results=results or None,
    )
    for key, value in (base.licence if base is not None else {}).items():
        data[key] = value
    return f"---\n{data.to_yaml()}\n---"


def _interval(primary: Comparison) -> dict[str, Any]:
    return {
        "base": primary.base,
        "gain": primary.gain,
        "gain_low": primary.low,
        "gain_high": primary.high,
        "confidence": primary.confidence,
        "rows": primary.rows,
        "groups": primary.groups,
        "verdict": primary.verdict,
    }
