"""Make proofs that do not contradict themselves."""

from dataclasses import replace
from typing import Any

from tests.support.verdicts import comparison, verdict

from tunesmith.core.verdict import Verdict
from tunesmith.proof.record import SAME, Check, Measure, Proof


def proof(**changes: Any) -> Proof:
    """Return a proof on 100 rows in which every check passed; `changes` replace its fields."""
    judged: Verdict = verdict(comparison("execution", base=0.5, tuned=0.5, gain=0.0, low=-0.02, high=0.02, rows=100))
    checks = (
        Check("ids", (Measure.all_of("equal texts", 116, 116),)),
        Check("template", (Measure.all_of("equal prompts", 108, 108),)),
        Check("logits", (Measure("mean KL divergence per token (nats)", 2e-05, at_most=0.001),)),
        Check("answers", (Measure.all_of(SAME, 100, 100),)),
        Check(
            "verdict",
            (
                Measure("loss of execution that is shown", 0.0, at_most=0.0),
                Measure("loss of execution that is not excluded", 0.02),
            ),
        ),
    )
    made = Proof("shop-sql@1", "ab" * 32, "llama.cpp b11549", "f16", {"precision": "fp32"}, 100, checks, judged)
    return replace(made, **changes)


def failing(name: str) -> tuple[Check, ...]:
    """Return the checks of `proof`, of which one failed."""
    wrong = Check(name, (Measure.all_of("equal", 99, 100),), ("prompt 3: another token",))
    return tuple(wrong if check.name == name else check for check in proof().checks)
