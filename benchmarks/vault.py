"""What a version costs in the vault: frames beside plain zstd at the same level, on weights that really were trained.

A base learns this repository's own documents for a few hundred steps at 1e-3 and is then forked on its source code at
2e-4, both by `trainer/`. The bf16 figures are those very weights rounded to bf16. Sizes are stored / raw of the whole
file, speeds are of raw bytes through encoding with its proof, and through decoding.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import zstandard

from benchmarks.measure import Figure, compare
from guard.frames import FrameHeader, FrameReader, FrameStats, decode_steps, encode_steps
from guard.store.sums import drain
from guard.tensors import FileBytes

__all__ = ["BENCHMARKS"]

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {"architecture": "qwen3", "layers": 4, "heads": 4, "kv_heads": 4, "width": 128, "hidden": 384, "block_size": 128,
         "vocab_size": 320, "rope_theta": 10000.0, "norm_eps": 1e-6, "tie_embeddings": True, "qk_norm": True}  # fmt: skip
TRAINING = {"min_learning_rate_ratio": 0.1, "warmup_fraction": 0.1, "decay_fraction": 0.2, "weight_decay": 0.1,
            "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0, "batch_sequences": 8, "epochs": 4}  # fmt: skip
BASE_STEPS, FORK_STEPS = 500, 300


def _trained(folder: Path, name: str, texts: list[Path], base: Path, rate: float, steps: int) -> Path:
    """Train `base` on these texts; returns the new version's folder."""
    from trainer.choose import select_new
    from trainer.prepare import SourceFile, prepare_dataset
    from trainer.tokenizer import load_tokenizer
    from trainer.train_job import run_train

    sources = [SourceFile(hashlib.sha256(path.read_bytes()).hexdigest(), path.name, path) for path in texts]
    dataset = prepare_dataset(sources, load_tokenizer("char"), folder / f"{name}-shards", stage="pretrain",
                              shard_size_tokens=10_000_000, salt="salt", validation_fraction=0.1)  # fmt: skip
    staging = folder / name
    staging.mkdir()
    chosen = select_new(dataset, stage="pretrain", known_fps=None, block_size=SHAPE["block_size"])
    training = {**TRAINING, "learning_rate": rate}
    job = {
        **_job(staging, "train"), "stage": "pretrain", "objective": "pretrain", "base": {"name": "base", "path": str(base)},
        "recipe": {"name": "bench", "stage": "pretrain", "training": training, "use_loss_mask": False},
        "steps": steps, "selection_sha256": chosen.selection.save(staging),
        "consumed_sha256": chosen.selection.consumed_hash(1337, steps, 8), "evaluation": [],
        "dataset": {"id": dataset.id, "path": str(dataset.folder)}, "snapshot": {"every_steps": 0, "every_seconds": 0},
    }  # fmt: skip
    (staging / "job.json").write_text(json.dumps(job))
    run_train(job)
    return staging / "out"


def _job(staging: Path, task: str) -> dict[str, Any]:
    return {"schema": 1, "job": 1, "task": task, "staging": str(staging), "tokenization": "char", "seed": 1337, "threads": 1,
            "dtype": "float32", "micro_sequences": 8}  # fmt: skip


@functools.cache
def _weights() -> tuple[tempfile.TemporaryDirectory[str], dict[str, tuple[Path, Path]]]:
    """Parent and fork, as fp32 and as bf16."""
    import torch
    from safetensors.torch import load_file, save_file

    from trainer.train_job import run_base

    keep = tempfile.TemporaryDirectory()
    folder = Path(keep.name)
    (folder / "base").mkdir()
    base = {**_job(folder / "base", "base"), "recipe": {"name": "bench", "stage": "pretrain", "model": SHAPE}}
    (folder / "base" / "job.json").write_text(json.dumps(base))
    run_base(base)
    prose = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    parent = _trained(folder, "parent", prose, folder / "base" / "out", 1e-3, BASE_STEPS)
    fork = _trained(folder, "fork", sorted((ROOT / "guard").glob("*/*.py")), parent, 2e-4, FORK_STEPS)
    pairs = {"fp32": (parent / "model.safetensors", fork / "model.safetensors")}
    for name, path in (("parent", pairs["fp32"][0]), ("fork", pairs["fp32"][1])):
        rounded = {key: value.to(torch.bfloat16) for key, value in load_file(path).items()}
        save_file(rounded, folder / f"{name}-bf16.safetensors", metadata={"format": "pt"})
    pairs["bf16"] = (folder / "parent-bf16.safetensors", folder / "fork-bf16.safetensors")
    return keep, pairs


def _steps(source: Path, parent: Path | None, target: Path) -> Generator[int, None, FrameStats]:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    behind = hashlib.sha256(parent.read_bytes()).hexdigest() if parent else ""
    header = FrameHeader("model.safetensors", source.stat().st_size, digest, int(parent is not None),
                         "parent" if parent else "", behind)  # fmt: skip
    with target.open("wb") as handle:
        return (yield from encode_steps(FileBytes(source), handle, header, FileBytes(parent) if parent else None))


def _proven(target: Path, parent: Path | None) -> None:
    def behind(_header: FrameHeader) -> FileBytes:
        assert parent is not None
        return FileBytes(parent)

    reader = FrameReader(target, behind)
    if drain(decode_steps(reader)) != reader.header.sha256:
        raise RuntimeError("the frame does not give back its file")


def _size(dtype: str, fork: bool) -> Figure:
    keep, pairs = _weights()
    source, parent = (pairs[dtype][1], pairs[dtype][0]) if fork else (pairs[dtype][0], None)
    target = Path(keep.name) / "x.frame"
    stats = drain(_steps(source, parent, target))
    _proven(target, parent)
    plain = len(zstandard.ZstdCompressor(level=1).compress(source.read_bytes()))
    ours, other = 100 * stats.stored / stats.raw, 100 * plain / stats.raw
    return Figure("vault size", "% of raw (less is better)", ours, other, "zstd -1", 1)


def _speed(dtype: str, fork: bool, runs: int) -> Figure:
    keep, pairs = _weights()
    source, parent = (pairs[dtype][1], pairs[dtype][0]) if fork else (pairs[dtype][0], None)
    target = Path(keep.name) / "x.frame"
    data = source.read_bytes()

    def ours() -> None:
        drain(_steps(source, parent, target))
        _proven(target, parent)

    def other() -> None:
        small = zstandard.ZstdCompressor(level=1).compress(data)
        hashlib.sha256(zstandard.ZstdDecompressor().decompress(small)).hexdigest()

    return compare("vault speed", "MB/s", len(data) / 1e6, ours, "zstd -1 and back", other, runs)


BENCHMARKS = {
    "vault size of a full bf16 frame, against zstd": lambda _runs: _size("bf16", False),
    "vault size of a bf16 fork, against zstd": lambda _runs: _size("bf16", True),
    "vault size of a full fp32 frame, against zstd": lambda _runs: _size("fp32", False),
    "vault size of an fp32 fork, against zstd": lambda _runs: _size("fp32", True),
    "vault full bf16 frame and proof, against zstd": lambda runs: _speed("bf16", False, runs),
    "vault bf16 fork and proof, against zstd": lambda runs: _speed("bf16", True, runs),
    "vault fp32 fork and proof, against zstd": lambda runs: _speed("fp32", True, runs),
}
