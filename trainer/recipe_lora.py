"""The `lora` section of a recipe: low-rank adapters instead of all weights (Hu et al., arXiv 2106.09685).

Today's names are those of the seeds and of `peft` in shorter form; the longer ones (`r`, `lora_alpha`, `lora_dropout`) are
understood too. Whether a model has the modules that are named is judged in `trainer/adapter_config.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

__all__ = ["ALL_LINEAR", "LINEAR_MODULES", "LoraSection"]

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every matrix of a decoder layer."""
ALL_LINEAR = "all-linear"


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not yes or no")
    return value


def _modules(value: object) -> object:
    """`all-linear` is spelt out: what a recipe freezes must not depend on what a later release counts as linear."""
    if isinstance(value, str):
        value = LINEAR_MODULES if value == ALL_LINEAR else [value]
    return value


class LoraSection(BaseModel):
    """Rank, scale and place of the adapters; the base stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: Annotated[int, BeforeValidator(_no_bool)] = Field(default=16, ge=1, le=4096, validation_alias=AliasChoices("rank", "r"))
    alpha: Annotated[float, BeforeValidator(_no_bool)] = Field(
        default=32.0, gt=0, validation_alias=AliasChoices("alpha", "lora_alpha"), description="the adapter counts alpha / rank")
    dropout: Annotated[float, BeforeValidator(_no_bool)] = Field(
        default=0.0, validation_alias=AliasChoices("dropout", "lora_dropout"))
    target_modules: Annotated[tuple[str, ...], BeforeValidator(_modules)] = Field(
        default=LINEAR_MODULES, min_length=1, validation_alias=AliasChoices("target_modules", "targets"))

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value:
            # A random mask per position would make the bits depend on how a batch is cut into micro-batches.
            raise ValueError("must be 0: training is the same however a batch is divided, and dropout would not be")
        return value

    @field_validator("target_modules")
    @classmethod
    def _sorted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """In the order of a layer, each once: equal recipes have equal hashes."""
        places: dict[str, Any] = {name: place for place, name in enumerate(LINEAR_MODULES)}
        return tuple(sorted(set(value), key=lambda name: (places.get(name, len(places)), name)))
