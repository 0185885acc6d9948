"""Hints of failed proofs name the cause that the checks show."""

from dataclasses import replace

import pytest
from tests.support.proofs import failing, proof

from tunesmith.proof.hints import hint_for
from tunesmith.proof.record import Check, Measure

QUANTIZED = {"precision": "fp32", "base_quantization": "nf4"}


@pytest.mark.parametrize(
    ("failed", "limit", "named"), [("verdict", 1.0, True), ("verdict", 0.0, False), ("ids", 1.0, False)]
)
def test_a_faithful_merge_of_a_qlora_adapter_is_told_from_a_fault(failed: str, limit: float, named: bool) -> None:
    base = Check("base", (Measure("nearest", 0.5, at_most=limit),))
    hint = hint_for(replace(proof(), type="f32", reference=QUANTIZED, checks=(*failing(failed), base)))
    assert ("nf4" in hint) == named
    assert "nf4" not in hint_for(replace(proof(), type="f32", checks=failing(failed)))
