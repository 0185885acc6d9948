"""Fine-tune language models from one recipe, and prove whether the result is better.

The folders in the order in which a row passes through them: demo, fetch, recipe, tasks, data, model, train, evaluate
(with inference and scoring), report, promote and registry, then export (with gguf, engines and proof) and serve.
`pipeline` runs them as stages, here or on Slurm; `sweep` compares several runs; `cli` has the commands.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.core.errors import TunesmithError
    from tunesmith.core.verdict import Comparison, Verdict
    from tunesmith.export.export import Exported, export_model
    from tunesmith.inference.chatter import Chatter, open_chatter
    from tunesmith.inference.sampling import Sampling
    from tunesmith.model.adapter_set import AdapterSet
    from tunesmith.pipeline.runner import run_recipe
    from tunesmith.plan.run_plan import plan_run
    from tunesmith.recipe.load import load_recipe
    from tunesmith.registry.store import Registry
    from tunesmith.scoring.metrics import score
    from tunesmith.scoring.replicates import replicated_verdict
    from tunesmith.scoring.verdict import paired_verdict
    from tunesmith.sweep.run import run_sweep

HOMES = {
    "AdapterSet": "tunesmith.model.adapter_set",
    "Chatter": "tunesmith.inference.chatter",
    "Comparison": "tunesmith.core.verdict",
    "Exported": "tunesmith.export.export",
    "Registry": "tunesmith.registry.store",
    "Sampling": "tunesmith.inference.sampling",
    "TunesmithError": "tunesmith.core.errors",
    "Verdict": "tunesmith.core.verdict",
    "export_model": "tunesmith.export.export",
    "load_recipe": "tunesmith.recipe.load",
    "open_chatter": "tunesmith.inference.chatter",
    "paired_verdict": "tunesmith.scoring.verdict",
    "plan_run": "tunesmith.plan.run_plan",
    "replicated_verdict": "tunesmith.scoring.replicates",
    "run_sweep": "tunesmith.sweep.run",
    "run_recipe": "tunesmith.pipeline.runner",
    "score": "tunesmith.scoring.metrics",
}

__all__ = [
    "AdapterSet", "Chatter", "Comparison", "Exported", "Registry", "Sampling", "TunesmithError", "Verdict",
    "__version__", "export_model", "load_recipe", "open_chatter", "paired_verdict", "plan_run",
    "replicated_verdict", "run_recipe", "run_sweep", "score",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import tunesmith` costs nothing."""
    if name == "__version__":
        return metadata.version("tunesmith")
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
