"""A second trainer, written from docs/FORMATS.md alone: what a job's files say is trained, in double precision and slowly.

Not a test itself, and it uses nothing of `trainer`: decoder, loss, AdamW, rate, clipping and the cutting of steps are its
own. Each document is fed by itself, a step is one sum, so whatever packing, micro-batches, lanes and fused kernels get
wrong shows as a difference.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

__all__ = ["train_plainly"]

Weights = dict[str, Any]


def _split(folder: Path) -> tuple[Any, Any]:
    """Tokens and mask of a prepared train split; text is trained everywhere."""
    about = json.loads((folder / "dataset_metadata.json").read_text())
    numbers = range(len(about["splits"]["train"]["shards"]))
    kind = {"uint16": "<u2", "uint32": "<u4"}[about["dtype"]]
    tokens = np.concatenate([np.fromfile(folder / f"train/shard_{i:05d}.bin", kind) for i in numbers]).astype(np.int64)
    if not about["splits"]["train"]["shards"][0]["mask_sha256"]:
        return tokens, np.ones(len(tokens), bool)
    return tokens, np.concatenate([np.fromfile(folder / f"train/shard_{i:05d}_mask.bin", np.uint8) for i in numbers]) > 0


def _sequences(staging: Path) -> tuple[dict[str, Any], list[list[tuple[Any, Any]]]]:
    """The frozen list, and each sequence's documents as tokens and mask: ranges of one document are joined."""
    table = dict(np.load(staging / "selection.npz"))
    data = [_split(Path(folder)) for folder in json.loads((staging / "selection.json").read_text())["datasets"]]
    result = []
    for first, end in table["sequences"]:
        documents: dict[int, list[tuple[Any, Any]]] = {}
        for row in range(first, end):
            number, start, length = table["ranges"][row]
            document = int(table["documents"][row]) if "documents" in table else 0
            documents.setdefault(document, []).append(tuple(part[start : start + length] for part in data[number]))
        result.append([tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in documents.values()])
    return table, result


def _steps(staging: Path, table: dict[str, Any], batch: int, block: int) -> list[Any]:
    """`consumed.bin`, cut: a step ends with its epoch and with its stage, whose shorter sequences are more."""
    fed, cut = np.fromfile(staging / "consumed.bin", "<i8"), []
    stages = table.get("stages", np.zeros(len(table["sequences"]), np.int64))
    lengths = table["curriculum"][:, 0] if "curriculum" in table else [block]
    while len(fed):
        left = len(table["sequences"]) - sum(map(len, cut)) % len(table["sequences"])
        stage = stages[fed[0]]
        most = min(left, batch * block // int(lengths[stage]), int((stages[fed[:left]] == stage).sum()))
        cut.append(fed[:most])
        fed = fed[most:]
    return cut


def _logits(weights: Weights, shape: dict[str, Any], ids: Any) -> Any:
    """A decoder over one document [T] -> [T, vocabulary]: RMSNorm, rotary positions from 0, SwiGLU."""
    heads, shared, size, count = (shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"], len(ids))
    angle = torch.arange(count).double()[:, None] / shape["rope_theta"] ** (torch.arange(0, size, 2).double() / size)
    cosine, sine = (torch.cat([part, part], -1) for part in (angle.cos(), angle.sin()))
    later = torch.full((count, count), -math.inf).double().triu(1)

    def norm(x: Any, name: str) -> Any:
        return x / (x.square().mean(-1, keepdim=True) + shape["rms_norm_eps"]).sqrt() * weights[name + ".weight"]

    def project(x: Any, name: str, parts: int) -> Any:
        return (x @ weights[f"{name}_proj.weight"].T).view(count, parts, size)

    def turned(x: Any, name: str) -> Any:
        x = norm(x, name) if name + ".weight" in weights else x
        left, right = x.transpose(0, 1).chunk(2, -1)
        return torch.cat([left, right], -1) * cosine + torch.cat([-right, left], -1) * sine

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = norm(x, at + "input_layernorm")
        q = turned(project(h, at + "self_attn.q", heads), at + "self_attn.q_norm")
        k = turned(project(h, at + "self_attn.k", shared), at + "self_attn.k_norm").repeat_interleave(heads // shared, 0)
        v = project(h, at + "self_attn.v", shared).transpose(0, 1).repeat_interleave(heads // shared, 0)
        seen = (q @ k.transpose(1, 2) / size**0.5 + later).softmax(-1) @ v
        x = x + seen.transpose(0, 1).reshape(count, heads * size) @ weights[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm")
        gate, up = (h @ weights[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ weights[at + "mlp.down_proj.weight"].T
    head = "model.embed_tokens.weight" if shape["tie_word_embeddings"] else "lm_head.weight"
    return norm(x, "model.norm") @ weights[head].T


def _rate(step: int, steps: int, how: dict[str, Any]) -> float:
    """Of step 1, 2 ... `steps`."""
    peak, floor = how["learning_rate"], how["learning_rate"] * how["min_learning_rate_ratio"]
    rise = how["warmup_steps"] if how.get("warmup_steps") is not None else math.ceil(how["warmup_fraction"] * steps)
    fall = math.ceil(how["decay_fraction"] * steps)
    rising = peak * step / rise if step < rise else peak
    return min(rising, floor + (peak - floor) * (steps - step + 1) / (fall + 1))


def train_plainly(staging: Path) -> tuple[list[dict[str, float]], Weights, Weights]:
    """Train a job again from its staging folder: a row for each step, the weights before, the weights at the end."""
    job = json.loads((staging / "job.json").read_text())
    base, how = Path(job["base"]["path"]), job["recipe"]["training"]
    shape = json.loads((base / "config.json").read_text())
    weights = {name: tensor.double().requires_grad_() for name, tensor in load_file(base / "model.safetensors").items()}
    before = {name: tensor.detach().clone() for name, tensor in weights.items()}
    moments = {name: (torch.zeros_like(tensor), torch.zeros_like(tensor)) for name, tensor in before.items()}
    table, sequences = _sequences(staging)
    steps, rows = _steps(staging, table, how["batch_sequences"], shape["max_position_embeddings"]), []
    for number, fed in enumerate(steps, start=1):
        documents = [document for sequence in fed for document in sequences[sequence]]
        losses = [torch.nn.functional.cross_entropy(_logits(weights, shape, ids[:-1]), torch.as_tensor(ids[1:]), reduction="none")
                  [torch.as_tensor(mask[1:])] for ids, mask in documents]  # fmt: skip
        loss = torch.cat(losses).mean()
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        size = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        rate = _rate(number, len(steps), how)
        rows.append({"loss": float(loss.detach()), "grad_norm": size, "learning_rate": rate,
                     "tokens": sum(len(ids) - 1 for ids, _ in documents), "loss_tokens": sum(map(len, losses))})  # fmt: skip
        with torch.no_grad():
            for name, tensor in weights.items():
                gradient = gradients[name] * (min(1.0, how["grad_clip"] / size) if how["grad_clip"] else 1.0)
                mean, square = moments[name]
                mean.lerp_(gradient, 1 - how["beta1"])
                square.lerp_(gradient.square(), 1 - how["beta2"])
                if tensor.dim() > 1:
                    tensor.mul_(1 - rate * how["weight_decay"])
                tensor -= rate * mean / (1 - how["beta1"] ** number) / (
                    (square / (1 - how["beta2"] ** number)).sqrt() + 1e-8)  # fmt: skip
    return rows, before, {name: tensor.detach() for name, tensor in weights.items()}
