"""How to train: a recipe from `configs/<stage>/<name>.yaml` or `.json`, validated key by key before anything runs.

Unknown keys are errors that name the nearest known one; the older flat JSON of nanoGPT style is understood too
(`trainer/recipe_flat.py`). A loaded recipe is complete but for `model.vocab_size`, which follows the tokenizer when it
is left out. Not here: settings of a home (`guard/settings.py`) and the arithmetic of the decoder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from guard.errors import UsageError
from trainer.recipe_flat import from_flat, is_flat
from trainer.recipe_lora import LoraSection

__all__ = ["PACKINGS", "ModelSection", "Recipe", "TrainingSection", "parse_recipe", "parse_sealed",
           "recipe_hash", "resolve"]  # fmt: skip

PACKINGS = ("off", "bestfit")
_AS_BEFORE: dict[str, Any] = {"packing": None, "on_anomaly": "halt", "spike_factor": 0.0, "max_skipped_steps": 0,
                              "seal_optimizer": False, "warmup_steps": None}
"""What earlier releases did about keys of `training` that they did not have."""


def _number(value: object) -> object:
    """YAML 1.1 reads `1e-3` as text: accept it. A bare yes or no is no number, though Python would count it."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not yes or no")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("must be a number") from None
    return value


def _packing(value: object) -> object:
    """YAML 1.1 reads a bare `off` as no."""
    return "off" if value is False else value


MOST_COUNT = 2**31 - 1
"""No count of a recipe is larger: what is multiplied from two of them still fits the 64 bits of every file and array."""
Whole = Annotated[int, BeforeValidator(_number), Field(le=MOST_COUNT)]
Real = Annotated[float, BeforeValidator(_number)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelSection(_Section):
    """The shape of a base made from nothing; names as in `trainer/model_config.py`."""

    architecture: Literal["qwen3", "llama"] = "qwen3"
    layers: Whole = Field(ge=1)
    heads: Whole = Field(ge=1)
    kv_heads: Whole = Field(default=0, ge=0, description="0: as many as heads")
    width: Whole = Field(ge=8)
    hidden: Whole = Field(default=0, ge=0, description="inner size of the feed-forward; 0: 8/3 of the width")
    head_dim: Whole = Field(default=0, ge=0, description="0: width / heads")
    block_size: Whole = Field(ge=8, description="most tokens the model sees at once")
    vocab_size: Whole | None = Field(default=None, ge=265, description="left out: the tokenizer's padded size")
    rope_theta: Real = Field(default=10000.0, gt=0)
    norm_eps: Real = Field(default=1e-6, gt=0, lt=1)
    tie_embeddings: bool = True
    qk_norm: bool = True

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "qk_norm" not in data:
            return {**data, "qk_norm": data.get("architecture", "qwen3") == "qwen3"}
        return data

    @model_validator(mode="after")
    def _complete(self) -> ModelSection:
        if not self.head_dim and self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads}), or give head_dim")
        # SwiGLU has three matrices where a plain feed-forward has two: 8/3 keeps the usual weight (Shazeer 2020);
        # rounded up to 64 for the benefit of the hardware.
        object.__setattr__(self, "hidden", self.hidden or -(-self.width * 8 // 3 // 64) * 64)
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.width // self.heads)
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")
        if self.qk_norm != (self.architecture == "qwen3"):
            raise ValueError("qk_norm belongs to the architecture qwen3 and only to it")
        return self


class TrainingSection(_Section):
    """How the weights move. The learning rate warms up, stays, and falls linearly at the end."""

    learning_rate: Real = Field(gt=0, le=1)
    min_learning_rate_ratio: Real = Field(default=0.0, ge=0, le=1, description="the last learning rate over the first")
    warmup_fraction: Real = Field(default=0.05, ge=0, le=1)
    warmup_steps: Whole | None = Field(default=None, ge=0, description="exact number of steps instead of the fraction")
    decay_fraction: Real = Field(default=0.2, ge=0, le=1)
    weight_decay: Real = Field(default=0.1, ge=0, lt=1)
    beta1: Real = Field(default=0.9, ge=0, lt=1)
    beta2: Real = Field(default=0.95, ge=0, lt=1)
    grad_clip: Real = Field(default=1.0, ge=0, description="0: none")
    on_anomaly: Literal["skip", "halt"] = Field(
        default="skip", description="a loss or gradient that is not finite, or a spike: pass over that step, or stop the job")
    spike_factor: Real = Field(default=10.0, ge=0, description="spreads above the median at which a loss is a spike; 0: never")
    max_skipped_steps: Whole = Field(default=4, ge=0, description="never more than a tenth of the steps either; then it stops")
    seal_optimizer: bool = Field(default=False, description="the version keeps its moments, and its children start from them")
    batch_sequences: Whole = Field(ge=1, description="sequences in one step")
    epochs: Whole = Field(default=1, ge=1)
    iterations: Whole | None = Field(default=None, ge=1, description="exact number of steps instead of epochs")
    packing: Annotated[Literal["off", "bestfit"] | None, BeforeValidator(_packing)] = Field(
        default="bestfit", description="which documents share a sequence; null: as releases before packing did")
    curriculum: tuple[Annotated[Whole, Field(ge=8)], ...] | None = Field(
        default=None, description="lengths of sequences in tokens, ascending: short ones are trained first; null: the block only")
    curriculum_shares: tuple[Annotated[Real, Field(gt=0)], ...] | None = Field(
        default=None, description="part of the tokens that each length gets; null: the same for all")

    @model_validator(mode="after")
    def _fractions(self) -> TrainingSection:
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError("warmup_fraction and decay_fraction together must not exceed 1")
        return self

    @model_validator(mode="after")
    def _stages(self) -> TrainingSection:
        lengths, shares = self.curriculum, self.curriculum_shares
        if lengths is not None and (not lengths or list(lengths) != sorted(set(lengths))):
            raise ValueError(f"curriculum must name lengths that grow, such as [512, 1024, 2048], not {list(lengths)}")
        if shares is not None and len(shares) != len(lengths or ()):
            raise ValueError(f"curriculum_shares must name one share for each of the {len(lengths or ())} lengths of curriculum")
        if lengths is not None and self.packing is None:
            raise ValueError("a curriculum needs packing: bestfit or off")
        return self


class Recipe(_Section):
    """A whole recipe. `model` is needed only to make a base; a fork takes the shape of its parent."""

    name: str = ""
    stage: Literal["pretrain", "sft"]
    model: ModelSection | None = None
    training: TrainingSection
    lora: LoraSection | None = Field(default=None, validation_alias=AliasChoices("lora", "adapter"),
                                     description="adapters instead of all weights")  # fmt: skip
    seed: Annotated[int, BeforeValidator(_number)] = Field(default=1337, ge=0, lt=2**63)
    use_loss_mask: bool | None = Field(default=None, description="left out: yes for sft, no for pretrain")
    ignored: tuple[str, ...] = Field(default=(), exclude=True)
    """Keys of an older recipe that mean nothing here: told to the person, no part of the hash."""

    @model_validator(mode="after")
    def _mask_of_stage(self) -> Recipe:
        if self.use_loss_mask is None:
            object.__setattr__(self, "use_loss_mask", self.stage == "sft")
        if self.use_loss_mask and self.stage == "pretrain":
            raise ValueError("use_loss_mask belongs to the stage sft: pretraining text has no mask")
        if self.training.curriculum is not None and self.stage != "pretrain":
            raise ValueError("training.curriculum belongs to the stage pretrain: a conversation is never cut to a length")
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: what a plan freezes and `job.json` carries. `parse_recipe` reads it back."""
        values = self.model_dump(mode="json")
        for key in ("curriculum", "curriculum_shares"):  # likewise only where they are
            if values["training"][key] is None:
                del values["training"][key]
        # Only where it is: recipes without adapters are, and hash to, what they were before there were any.
        return values if self.lora is not None else {key: value for key, value in values.items() if key != "lora"}

    def to_yaml(self) -> str:
        """The recipe as YAML with every value spelt out."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)


def _section_keys(location: Sequence[object]) -> list[str]:
    """The keys known where `location` points."""
    sections: dict[str, type[BaseModel]] = {"model": ModelSection, "training": TrainingSection, "lora": LoraSection,
                                             "adapter": LoraSection}
    owner = sections.get(str(location[0]), Recipe) if len(location) > 1 else Recipe
    return [key for key in owner.model_fields if key != "ignored"]


def _explain(error: ValidationError, source: str) -> UsageError:
    """One complaint as a sentence with key, value and what is allowed; the others are counted."""
    # An unknown key first: a misspelt one explains why another is missing.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    key = ".".join(str(step) for step in first["loc"]) or "recipe"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    known = _section_keys(first["loc"]) if first["loc"] else _section_keys(("",))
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return UsageError(f"{source}: unknown key {key}{more}", subject=key, hint=hint)
    if first["type"] == "missing":
        return UsageError(f"{source}: {key} is missing{more}", subject=key, hint=f"add a line with {key}")
    shown = "" if isinstance(first["input"], Mapping) else f" = {first['input']!r}"
    reason = first["msg"].removeprefix("Value error, ")
    return UsageError(f"{source}: {key}{shown}: {reason}{more}", subject=key, hint=f"correct {key} and try again")


def parse_recipe(data: object, source: str = "recipe") -> Recipe:
    """Validate plain values (from YAML, JSON or `as_dict`). Raises UsageError naming key, value and what is allowed."""
    if not isinstance(data, Mapping):
        raise UsageError(f"{source}: expected keys and values, found {type(data).__name__}",
                         hint="see configs/pretrain/micro.yaml")  # fmt: skip
    if "ignored" in data:
        raise UsageError(f"{source}: unknown key ignored", subject="ignored", hint="remove it")
    values: Mapping[str, Any] = from_flat(data, source) if is_flat(data) else data
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(error, source) from None  # it says all that a person needs of it


def parse_sealed(data: Mapping[str, Any], source: str = "sealed recipe") -> Recipe:
    """`parse_recipe` for what a plan or a version froze: what it does not say is as it was then, not today's default."""
    training = data.get("training")
    if isinstance(training, Mapping):
        data = {**data, "training": {**_AS_BEFORE, **training}}
    return parse_recipe(data, source)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for dotted, value in changes.items():
        key, _, rest = dotted.partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping):
            value = _merge(merged.get(key) or {}, value)
        merged[key] = value
    return merged


def resolve(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with some values replaced: `{"training.epochs": 3}` or `{"training": {"epochs": 3}}`.

    What a recipe derived (such as `hidden`) stays as it was. Raises UsageError like `parse_recipe`.
    """
    return parse_recipe(_merge(recipe.as_dict(), overrides), f"recipe {recipe.name or recipe.stage}")


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 over the canonical JSON of all values except the name: equal hash, equal training.

    A recipe sealed before there was packing, or before steps could be skipped, keeps the hash it was sealed with.
    """
    values = {key: value for key, value in recipe.as_dict().items() if key != "name"}
    training = values["training"]
    values["training"] = {key: told for key, told in training.items() if key not in _AS_BEFORE or told != _AS_BEFORE[key]}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
