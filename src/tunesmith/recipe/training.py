"""The section `train`: the optimizer, its schedule, and when training validates, saves and stops."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tunesmith.recipe.base import Fraction, Section, setting_error

# A decay over 20 % of the steps matches or beats a cosine (Hägele et al. 2024, arXiv:2405.18392).
_DECAY_FRACTION = 0.2


class StopEarly(Section):
    """When training stops before its last step. The schedule of the learning rate remains that of all steps."""

    after_validations: int = Field(ge=1, description="Stop after so many validations in a row without an improvement.")
    min_change: float = Field(
        0.0, ge=0, description="An improvement is a change by more than this, in the metric's unit."
    )


class Train(Section):
    """Optimization. tunesmith never adjusts these settings."""

    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "muon", "sgd"] = Field(
        "adamw",
        description="AdamW, AdamW with 8-bit moments, Adafactor, Muon (with AdamW for everything but the matrices of "
        "layers), or SGD without momentum.",
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    epochs: float = Field(1.0, gt=0, description="Number of passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many optimizer steps, if `epochs` takes more.")
    examples_per_step: int = Field(8, ge=1, description="Rows per optimizer step, over all ranks and micro-batches.")
    micro_batch: Literal["auto"] | int = Field("auto", description="Rows of a rank per pass; does not affect results.")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="Maximum tokens per forward pass if `micro_batch` is `auto`; default by device."
    )
    packing: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Pack several rows into one sequence with block-diagonal attention and a shared prefix: if it is "
        "cheaper (`auto`), `always` or `never`. Affects memory and speed, not results.",
    )
    activation_checkpointing: bool = Field(False, description="Recompute activations in backward: less memory, slower.")
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(
        "cosine",
        description="Learning rate after the warmup. `wsd` (warmup, stable, decay) stays at the peak and falls at the "
        "end, in `decay_fraction` of the steps.",
    )
    warmup_fraction: Fraction = Field(0.03, description="Fraction of steps in which the learning rate rises linearly.")
    decay_fraction: Fraction | None = Field(
        None, description="With `wsd`: fraction of steps at the end in which the rate falls; default 0.2."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay, applied to matrices only.")
    beta1: Fraction = Field(0.9, description="Decay rate of AdamW's first moment.")
    beta2: Fraction = Field(0.999, description="Decay rate of AdamW's second moment.")
    max_gradient_norm: float = Field(1.0, gt=0, description="Largest norm of the gradient; larger ones are clipped.")
    valid_every_steps: int | None = Field(None, ge=1, description="Steps between validations; default a tenth of all.")
    valid_loss_rows: Literal["auto", "all"] | int = Field(
        "auto",
        description="Number of valid rows on which `loss` and `token_accuracy` are measured, chosen by hash and the "
        "same every time. `auto`: as many as keep all validations together within a tenth of the training tokens, and "
        "at least 8.",
    )
    valid_metrics: tuple[str, ...] = Field(
        (),
        description="Metrics of generated answers to valid rows, measured at every validation. The names are those of "
        "`evaluate.metrics`, except loss, perplexity and token_accuracy; `evaluate` decides how answers are decoded.",
    )
    valid_rows: int = Field(32, ge=1, description="Number of valid rows answered for `valid_metrics`, chosen by hash.")
    select_best_by: str = Field(
        "loss", description="What selects the best checkpoint: `loss`, `token_accuracy` or one of `valid_metrics`."
    )
    stop_early: StopEarly | None = Field(
        None, description="Stop when validation by `select_best_by` no longer improves; default: take all steps."
    )
    save_every_steps: int | None = Field(None, ge=1, description="Steps between saves; default `valid_every_steps`.")
    keep_checkpoints: int = Field(2, ge=1, description="Number of latest checkpoints to keep, in addition to the best.")

    @field_validator("valid_loss_rows", "micro_batch")
    @classmethod
    def _check_positive(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise setting_error("wrong-value", f"must be at least 1 (found {value})")
        return value

    @model_validator(mode="after")
    def _check_decay(self) -> Self:
        if self.schedule != "wsd" and self.decay_fraction is not None:
            raise setting_error("no-effect", "`decay_fraction` has no effect without `schedule: wsd`")
        if self.warmup_fraction + decayed_fraction(self) > 1:
            raise setting_error("contradiction", "`warmup_fraction` and `decay_fraction` are together more than 1")
        return self


def decayed_fraction(train: Train) -> float:
    """Return the fraction of steps at the end in which `wsd` lowers the learning rate; 0 with another schedule."""
    if train.schedule != "wsd":
        return 0.0
    return _DECAY_FRACTION if train.decay_fraction is None else train.decay_fraction
