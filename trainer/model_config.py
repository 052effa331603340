"""The shape of a model, and its translation to and from the `config.json` of Hugging Face. Torch-free.

One frozen record. `from_recipe` takes a recipe's `model` section, `from_hf` a `config.json`; both refuse what our
decoder cannot compute instead of computing something else. Which recipe is meant is decided elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guard.errors import CheckFailed, UsageError

__all__ = ["ARCHITECTURES", "ModelConfig"]

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


@dataclass(frozen=True)
class ModelConfig:
    """Everything the decoder's shape depends on."""

    layers: int
    """Number of decoder layers."""
    heads: int
    """Query heads per layer."""
    width: int
    """Size of the residual stream."""
    hidden: int
    """Inner size of the feed-forward."""
    block_size: int
    """Most positions a sequence may have."""
    vocab_size: int
    """Rows of the embedding, padding rows included."""
    architecture: str = "qwen3"
    """`qwen3` (with QK-norm) or `llama` (without): the Hugging Face class that loads the version."""
    kv_heads: int = 0
    """Key/value heads; 0 means as many as query heads."""
    head_dim: int = 0
    """Size of one head; 0 means width / heads."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square inside RMSNorm."""
    tie_embeddings: bool = True
    """Input and output embeddings are one matrix."""
    qk_norm: bool = True
    """RMSNorm on queries and keys: always with qwen3, never with llama."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.width // max(1, self.heads))
        problem = self._problem()
        if problem:
            raise UsageError(f"model shape: {problem}", hint="correct the recipe's `model` section")

    def _problem(self) -> str:
        for name in ("layers", "heads", "width", "hidden", "block_size", "vocab_size", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                return f"{name} must be at least 1, not {getattr(self, name)}"
        if self.architecture not in ARCHITECTURES:
            return f"architecture {self.architecture!r} is not one of {', '.join(ARCHITECTURES)}"
        if self.qk_norm != (self.architecture == "qwen3"):
            return "qk_norm belongs to qwen3 and only to it (the Hugging Face classes know no other combination)"
        if self.heads % self.kv_heads:
            return f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
        if self.head_dim % 2:
            return f"head_dim ({self.head_dim}) must be even for rotary positions"
        if self.width % self.heads and self.architecture == "llama":
            return f"width ({self.width}) must be a multiple of heads ({self.heads})"
        return ""

    @classmethod
    def from_recipe(cls, model: Mapping[str, Any]) -> ModelConfig:
        """From a resolved recipe's `model` section. Raises UsageError for unknown keys or an impossible shape."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(model) - known)
        if unknown:
            raise UsageError(f"unknown keys in the recipe's model section: {', '.join(unknown)}")
        given = {key: value for key, value in model.items() if value is not None}
        given.setdefault("qk_norm", given.get("architecture", "qwen3") == "qwen3")
        try:
            return cls(**given)
        except TypeError as error:
            raise UsageError(f"the recipe's model section is incomplete: {error}") from error

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """From a Hugging Face `config.json`. Raises CheckFailed for what our decoder does not compute."""
        architecture = str(config.get("model_type", ""))
        if architecture not in ARCHITECTURES:
            raise CheckFailed(f"model type {architecture!r} is not one our decoder knows",
                              hint=f"known are {', '.join(ARCHITECTURES)}")  # fmt: skip
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        _refuse_unsupported(config, rope)
        try:
            return cls(
                architecture=architecture, layers=config["num_hidden_layers"], heads=config["num_attention_heads"],
                kv_heads=config.get("num_key_value_heads") or 0, width=config["hidden_size"],
                hidden=config["intermediate_size"], block_size=config["max_position_embeddings"],
                vocab_size=config["vocab_size"], head_dim=config.get("head_dim") or 0,
                rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
                norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                tie_embeddings=bool(config.get("tie_word_embeddings", False)), qk_norm=architecture == "qwen3",
            )  # fmt: skip
        except KeyError as error:
            raise CheckFailed(f"config.json lacks {error}") from error

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this shape (token ids are added by `version_files`)."""
        return {
            "architectures": [ARCHITECTURES[self.architecture]],
            "model_type": self.architecture,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.block_size,
            "initializer_range": 0.02,
            "rms_norm_eps": self.norm_eps,
            "use_cache": True,
            "tie_word_embeddings": self.tie_embeddings,
            # transformers 5 reads rope_parameters, older readers rope_theta
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rope_theta": self.rope_theta,
            "attention_bias": False,
            "attention_dropout": 0.0,
        }

    def parameter_count(self) -> int:
        """Weights in the model; a tied embedding counts once."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        norms = 2 * self.width + (2 * self.head_dim if self.qk_norm else 0)
        layer = attention + 3 * self.width * self.hidden + norms
        embeddings = self.vocab_size * self.width * (1 if self.tie_embeddings else 2)
        return embeddings + self.layers * layer + self.width


def _refuse_unsupported(config: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """Fail closed on any feature that would silently give other logits."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    layer_types = set(config.get("layer_types") or ()) - {"full_attention"}
    reasons = [
        kind != "default" and f"rotary scaling {kind!r}",
        rope.get("partial_rotary_factor", 1.0) != 1.0 and "partial rotary positions",
        config.get("attention_bias") and "attention biases",
        config.get("mlp_bias") and "feed-forward biases",
        config.get("use_sliding_window") and "a sliding window",
        bool(layer_types) and f"layers of type {', '.join(sorted(layer_types))}",
        config.get("hidden_act", "silu") != "silu" and f"activation {config.get('hidden_act')!r}",
        bool(config.get("quantization_config")) and "quantised weights",
    ]
    found = [reason for reason in reasons if reason]
    if found:
        raise CheckFailed(f"our decoder does not compute {', '.join(map(str, found))}",
                          hint="use a base without it")  # fmt: skip
