"""How a run trains: one frozen configuration, which makes the options of the command line, the body of the API and the saved
JSON. Bounds stand here and nowhere else. What is left open (None) is filled in once the method is known, see `resolved`.
"""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["auto", "sft", "dpo", "kto"]


class TrainConfig(BaseModel):
    """Hyper-parameters by their usual names."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    method: Method = Field("auto", description="sft: corrections; dpo: pairs; kto: ratings; auto: whichever there is most for.")
    tuning: Literal["lora", "full"] = Field("lora", description="Train a LoRA adapter, or all weights.")
    rank: int = Field(16, ge=1, le=256, description="Rank of the LoRA matrices.")
    alpha: float = Field(32, gt=0, le=1024, description="LoRA scale: alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the LoRA matrices.")
    learning_rate: float | None = Field(None, gt=0, le=0.1, description="Peak learning rate; else by method.")
    epochs: float | None = Field(None, gt=0, le=100, description="Passes over the training rows; else by method.")
    batch: int = Field(8, ge=1, le=1024, description="Rows of one optimizer step.")
    max_tokens: int = Field(
        1024, ge=16, le=131_072, description="Longest row in tokens; longer ones are left out, and counted."
    )
    beta: float = Field(0.1, gt=0, le=10, description="DPO and KTO: strength of the pull towards the reference.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="DPO: share of preferences taken to be flipped (robust DPO).")
    desirable_weight: float | None = Field(None, gt=0, le=100, description="KTO: weight of good answers; else balances both.")
    sft_weight: float = Field(0.0, ge=0, le=10, description="DPO: weight of the likelihood of the chosen answers (RPO).")
    rehearsal: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Weight of ordinary questions answered as the base does, against forgetting; 0: none; else by method.",
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="How the learning rate falls.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, le=1000, description="Gradients are scaled down to this norm.")
    checkpoint_s: float = Field(30, ge=0, le=3600, description="Seconds between two checkpoints.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Number type of the frozen weights.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Order of the rows, dropout and the first LoRA weights.")

    def resolved(self, method: Literal["sft", "dpo", "kto"]) -> Self:
        """The same with ``method`` chosen and what was left open filled in."""
        rate, epochs, rehearsal = _DEFAULTS[method]
        if self.tuning == "full":
            rate /= _FULL_SLOWER
        changes = {
            "method": method,
            "learning_rate": rate if self.learning_rate is None else self.learning_rate,
            "epochs": epochs if self.epochs is None else self.epochs,
            "rehearsal": rehearsal if self.rehearsal is None else self.rehearsal,
        }
        return self.model_copy(update=changes)


_DEFAULTS: Final = {"sft": (2e-3, 6.0, 2.0), "dpo": (3e-4, 3.0, 0.5), "kto": (3e-4, 2.0, 0.5)}
"""Learning rate, epochs and rehearsal of a LoRA run, as measured on a small model with tens to hundreds of rows
(doc/measurements.md)."""
_FULL_SLOWER: Final = 40.0
"""All weights at once want a much smaller step."""
