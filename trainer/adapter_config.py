"""What an adapter is: rank, scale, which matrices; to and from a recipe and peft's `adapter_config.json`. Torch-free.

`peft` itself is not used: importing it takes six seconds and half a gigabyte of modules that every forked job would carry,
and what is needed of it is a product of two matrices and two files. Its format is: a version of adapter files loads with
`peft.PeftModel.from_pretrained(base, folder)`. Not here: the matrices (`trainer/adapter.py`), the files
(`trainer/adapter_files.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guard.errors import CheckFailed, UsageError
from trainer.model_config import ModelConfig
from trainer.recipe_lora import LINEAR_MODULES

__all__ = ["AdapterConfig", "require_continuable"]

_OTHER_METHODS = ("use_dora", "use_rslora", "use_qalora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
                  "layers_to_transform", "layer_replication", "modules_to_save", "target_parameters", "exclude_modules",
                  "trainable_token_indices", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
                  "alora_invocation_tokens")  # fmt: skip
"""Keys of `adapter_config.json` that ask for other arithmetic than ours."""


@dataclass(frozen=True)
class AdapterConfig:
    """W x becomes W x + alpha / rank * B (A x) for each target W, with A [rank, in] and B [out, rank]."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    """Names of matrices of a decoder layer, adapted in every layer."""

    @property
    def scaling(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    @classmethod
    def from_recipe(cls, lora: Mapping[str, Any]) -> AdapterConfig:
        """From a resolved recipe's `lora` section. Raises UsageError for a matrix that our decoder has not.

        A name that fits nothing must never be passed over: it would train less than was asked for, and nobody would see it.
        """
        strange = [name for name in lora["target_modules"] if name not in LINEAR_MODULES]
        if strange:
            dense = "gate_up_proj" in strange or "gate_up_projs" in strange
            hint = "this model is dense and has gate_proj and up_proj instead" if dense else f"one of {', '.join(LINEAR_MODULES)}"
            raise UsageError(f"lora.target_modules: the model has no {', '.join(strange)}", subject="lora.target_modules",
                             hint=hint)  # fmt: skip
        return cls(int(lora["rank"]), float(lora["alpha"]), tuple(lora["target_modules"]))

    @classmethod
    def from_peft(cls, values: Mapping[str, Any]) -> AdapterConfig:
        """From an `adapter_config.json`. Raises CheckFailed for what our decoder would compute otherwise."""
        asked = [name for name in _OTHER_METHODS if values.get(name)]
        if values.get("peft_type") != "LORA" or values.get("bias", "none") != "none" or asked:
            what = ", ".join(asked) or f"type {values.get('peft_type')}, bias {values.get('bias')}"
            raise CheckFailed(f"our decoder does not compute this adapter ({what})", hint="use peft for it")
        targets = values.get("target_modules")
        if not isinstance(targets, list) or not set(targets) <= set(LINEAR_MODULES) or not targets:
            raise CheckFailed(f"the adapter is for {targets}", hint=f"known are {', '.join(LINEAR_MODULES)}")
        rank, alpha = values.get("r"), values.get("lora_alpha")
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
            raise CheckFailed(f"the adapter says rank {rank!r} and alpha {alpha!r}",
                              hint="both are numbers above 0; heirloom verify")
        return cls(rank, float(alpha), tuple(name for name in LINEAR_MODULES if name in targets))

    def to_peft(self, base: str) -> dict[str, Any]:
        """The `adapter_config.json`; `base`: where the full weights lie, seen from the home's folder."""
        whole = int(self.alpha)
        return {
            "base_model_name_or_path": base, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
            "init_lora_weights": True, "lora_alpha": whole if whole == self.alpha else self.alpha, "lora_dropout": 0.0,
            "modules_to_save": None, "peft_type": "LORA", "r": self.rank, "target_modules": list(self.target_modules),
            "task_type": "CAUSAL_LM", "use_dora": False, "use_rslora": False,
        }  # fmt: skip

    def parameter_count(self, model: ModelConfig) -> int:
        """Numbers in all A and B of a model of that shape; a name that fits nothing counts nothing, and is refused elsewhere."""
        heads, kv_heads = model.heads * model.head_dim, model.kv_heads * model.head_dim
        sides = {"q_proj": (model.width, heads), "k_proj": (model.width, kv_heads), "v_proj": (model.width, kv_heads),
                 "o_proj": (heads, model.width), "gate_proj": (model.width, model.hidden),
                 "up_proj": (model.width, model.hidden), "down_proj": (model.hidden, model.width)}  # fmt: skip
        return model.layers * self.rank * sum(sum(sides.get(name, ())) for name in self.target_modules)


def require_continuable(asked: AdapterConfig, there: AdapterConfig, name: str) -> None:
    """Raise CheckFailed when a recipe asks for another adapter than the version `name` has: one adapter is trained on."""
    if asked == there:
        return
    targets = ", ".join(there.target_modules)
    raise CheckFailed(
        f"{name} is an adapter of rank {there.rank}, alpha {there.alpha:g} on {targets}; the recipe asks for rank {asked.rank},"
        f" alpha {asked.alpha:g} on {', '.join(asked.target_modules)}", subject=name,
        hint="set lora.rank, lora.alpha and lora.target_modules to those, plan on the adapter's base, or take a recipe without"
             " lora: it merges the adapter and trains all weights")  # fmt: skip
