"""Our lean decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, optional QK-norm, tied embeddings.

The parameter names and `config.json` equal those of `Qwen3ForCausalLM` and `LlamaForCausalLM` in `transformers`
(5.x), so weights go both ways unchanged; `tests/test_trainer_model.py` holds the two to the same logits.
It computes hidden states; the loss over the vocabulary is `trainer/loss.py`, sampling is `trainer/generate.py`.
It knows nothing of recipes, data or files.

Sources: Qwen3 (arXiv 2505.09388), Llama 2 (arXiv 2307.09288), RoPE (arXiv 2104.09864), GQA (arXiv 2305.13245),
RMSNorm (arXiv 1910.07467), SwiGLU (arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.kernels import normed, rotated, swiglu
from trainer.model_config import ModelConfig

__all__ = ["Decoder", "Halves", "KeyValueCache", "new_model"]

INITIAL_DEVIATION = 0.02


class KeyValueCache:
    """Keys and values of the tokens seen so far, one pair per layer: each [batch, kv_heads, seen, head_dim]."""

    def __init__(self, layers: int) -> None:
        self._pairs: list[tuple[Tensor, Tensor] | None] = [None] * layers

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        first = self._pairs[0]
        return 0 if first is None else first[0].shape[2]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values and return all of them."""
        seen = self._pairs[layer]
        if seen is not None:
            keys, values = torch.cat((seen[0], keys), dim=2), torch.cat((seen[1], values), dim=2)
        self._pairs[layer] = (keys, values)
        return keys, values


@dataclass(frozen=True)
class Halves:
    """A layer before and after its attention, compiled; the functions of `trainer/kernels.py` of those names."""

    before: Callable[..., tuple[Tensor, Tensor, Tensor]]
    after: Callable[..., Tensor]


@dataclass(frozen=True)
class Place:
    """Where the tokens of one forward pass stand and what they may see: the same for every layer."""

    cos: Tensor
    """fp32 [tokens, 1, head_dim / 2], as `sin`: the angles of each token's position."""
    sin: Tensor
    rows: int
    """Rows of the batch; all have the same number of tokens."""
    lengths: list[int] | None
    """Lengths of the documents in the order in which they stand; None: each row is one document."""
    cache: KeyValueCache | None
    halves: Halves | None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normed(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention in which several query heads share one key/value head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.qk_norm = config.qk_norm

    def project(self, x: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, keys, and values, each [tokens, heads, head_dim], of normed rows [tokens, width]."""
        queries = self.q_proj(x).view(-1, self.heads, self.head_dim)
        keys = self.k_proj(x).view(-1, self.kv_heads, self.head_dim)
        values = self.v_proj(x).view(-1, self.kv_heads, self.head_dim)
        if self.qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        return rotated(queries, place.cos, place.sin), rotated(keys, place.cos, place.sin), values

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor, place: Place, layer: int) -> Tensor:
        """What every token takes from those it may see: [tokens, heads * head_dim]."""
        if place.lengths is not None:
            keys, values = self._share(keys), self._share(values)
            return _attend_within(queries, keys, values, place.lengths).flatten(1)
        queries, keys, values = (x.unflatten(0, (place.rows, -1)).transpose(1, 2) for x in (queries, keys, values))
        if place.cache is not None:
            keys, values = place.cache.extend(layer, keys, values)
        keys, values = self._share(keys, 1), self._share(values, 1)
        tokens, seen = queries.shape[2], keys.shape[2]
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=_look_back(tokens, seen, queries.device), is_causal=tokens == seen
        )
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)

    def _share(self, x: Tensor, heads: int = -2) -> Tensor:
        """Repeat each key/value head, which stand in dimension `heads`, for the query heads it serves."""
        group = self.heads // self.kv_heads
        return x if group == 1 else x.repeat_interleave(group, dim=heads)


def _look_back(tokens: int, seen: int, device: torch.device) -> Tensor | None:
    """The mask of `tokens` new positions at the end of `seen`; None where "causal" or "everything" says it all."""
    if tokens in (1, seen):
        return None
    return torch.ones(tokens, seen, dtype=torch.bool, device=device).tril(seen - tokens)


def _attend_within(queries: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention of each document to itself alone: [tokens, heads, head_dim].

    q, k, v [tokens, heads, head_dim]; `lengths` of the documents in the order in which they stand, row by row.
    One call per document leaves out all pairs of different documents, where a mask computes and then drops them: a
    third to a half of the time of a mask at 512 and 1,024 tokens, and less than one document of that length takes.
    `split` gets its gradient back in one piece; slices would each fill a tensor as large as the batch.
    """
    parts = [x.split(lengths) for x in (queries, keys, values)]
    mixed = []
    for document in zip(*parts, strict=True):
        query, key, value = (part.transpose(0, 1)[None] for part in document)
        mixed.append(F.scaled_dot_product_attention(query, key, value, is_causal=True)[0].transpose(0, 1))
    return torch.cat(mixed)


def _layout(documents: Tensor) -> tuple[Tensor, list[int]]:
    """Positions [batch, tokens] counted anew in each document, and the documents' lengths in the order they stand."""
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    count = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begin = torch.where(starts, count, 0).cummax(1).values
    edges = torch.nonzero(starts.flatten()).flatten()
    lengths = torch.diff(edges, append=edges.new_tensor([documents.numel()]))
    return count - begin, lengths.tolist()


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Module):
    """One decoder layer: attention, then feed-forward, each on a normed copy added back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, place: Place, layer: int) -> Tensor:
        """The residual stream [tokens, width] behind this layer, the `layer`-th."""
        attention, mlp = self.self_attn, self.mlp
        if place.halves is not None:
            return self._compiled(x, place, layer, place.halves)
        mixed = attention.mix(*attention.project(self.input_layernorm(x), place), place, layer)
        x = x + attention.o_proj(mixed)
        return x + mlp(self.post_attention_layernorm(x))

    def _compiled(self, x: Tensor, place: Place, layer: int, halves: Halves) -> Tensor:
        """The same through two compiled functions of plain tensors: every layer shares them."""
        attention, mlp, norm = self.self_attn, self.mlp, self.input_layernorm
        turned = halves.before(
            x, norm.weight, attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight,
            attention.q_norm.weight if attention.qk_norm else None, attention.k_norm.weight if attention.qk_norm else None,
            place.cos, place.sin, norm.eps)  # fmt: skip
        result: Tensor = halves.after(
            x, attention.mix(*turned, place, layer), attention.o_proj.weight, self.post_attention_layernorm.weight,
            mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, norm.eps)  # fmt: skip
        return result


class _Body(nn.Module):
    """What Hugging Face calls `model`: embeddings, layers, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


class Decoder(nn.Module):
    """The whole model. `forward` gives hidden states; `logits` turns chosen ones into scores over the vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._cos, self._sin = _rotary_tables(config)
        self.compute_dtype = torch.float32
        """Of the residual stream and the matrix products in the layers: that of their matrices (`trainer/precision.py`)."""
        self.halves: Halves | None = None
        """The compiled halves of a layer, while a run trains with them (`trainer/compiling.py`)."""

    @property
    def head_weight(self) -> Tensor:
        """The [vocab_size, width] matrix of the output layer: the embedding itself when tied."""
        return self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    def get_input_embeddings(self) -> nn.Embedding:
        """The module that embeds tokens; named as in `transformers`."""
        return self.model.embed_tokens

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None, documents: Tensor | None = None) -> Tensor:
        """Final normed hidden states [batch, tokens, width] for int64 ids [batch, tokens].

        With a cache, `tokens` continue what the cache has seen. At most `block_size` positions in all.
        `documents` int64 [batch, tokens]: neighbours with one number are one document. A document sees itself alone and
        its positions begin at 0, as if it had been fed in a row of its own; it is the document that must not be longer
        than the block then, and not the row. Not together with a cache.
        """
        assert cache is None or documents is None, "a cache continues one document"
        start = 0 if cache is None else cache.length
        place = self._place(tokens, start, cache, documents)
        x = self.model.embed_tokens(tokens).flatten(0, 1).to(self.compute_dtype)
        for number, layer in enumerate(self.model.layers):
            x = layer(x, place, number)
        return self.model.norm(x).unflatten(0, tokens.shape)

    def _place(self, tokens: Tensor, start: int, cache: KeyValueCache | None, documents: Tensor | None) -> Place:
        """Where the tokens stand. Raises AssertionError for more positions than the block has."""
        batch, count = tokens.shape
        if documents is None:
            lengths, end = None, start + count
            positions = torch.arange(start, end, device=tokens.device).repeat(batch)
        else:
            positions, lengths = _layout(documents)
            positions, end = positions.flatten(), max(lengths)
        assert end <= self.config.block_size, f"{end} positions exceed the block of {self.config.block_size}"
        if self._cos.device != tokens.device:
            self._cos, self._sin = self._cos.to(tokens.device), self._sin.to(tokens.device)
        return Place(self._cos[positions][:, None], self._sin[positions][:, None], batch, lengths, cache, self.halves)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., vocab_size] in fp32 for hidden states [..., width]."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype)).float()


def _rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [block_size, head_dim / 2] in fp32; plain attributes, as they are neither weights nor saved."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.block_size, dtype=torch.float32), 1.0 / config.rope_theta**steps)
    return angles.cos(), angles.sin()


def new_model(config: ModelConfig, seed: int) -> Decoder:
    """A freshly initialised model: a function of (config, seed) only.

    Normal with deviation 0.02; the two projections that write into the residual stream are scaled down by
    sqrt(2 * layers) as in GPT-2; norms are ones. Parameters are drawn in the order of their sorted names, so that
    moving code about does not change the bits.
    """
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            deviation = INITIAL_DEVIATION / ((2 * config.layers) ** 0.5 if writes_residual else 1.0)
            parameter.normal_(0.0, deviation, generator=generator)
    return model
