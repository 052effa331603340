"""Token shards: the whole way from a file to durable shards, beside bare tiktoken and beside `datasets` with a fast tokenizer.

Prose and code come from what every Python has (its help texts, its library), so nothing is downloaded. One thread is measured
in processor time (what a core does, whoever else works on the machine), two in wall time. Not here: intake, training.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import tiktoken

from benchmarks.measure import Figure, compare
from guard.checks.rows import iter_examples
from trainer.prepare import SourceFile, prepare_dataset
from trainer.tokenizer import GPT2_PATTERN, load_tokenizer

__all__ = ["BENCHMARKS", "shards_against_tiktoken"]

FILE_BYTES = int(os.environ.get("SHARDS_BYTES", "52000000"))
SHAPES = ("prose.txt", "code.txt", "chat.jsonl")


def _prose() -> Iterator[str]:
    """Paragraphs of English in an order of their own, as often as asked: no page comes twice in the same place."""
    pages = ("\n\n".join(topics[name] for name in sorted(topics))).split("\n\n")
    dice = random.Random(1)
    while True:
        yield from (page + "\n\n" for page in dice.sample(pages, len(pages)))


def _code() -> Iterator[str]:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    dice = random.Random(1)
    while True:
        for path in dice.sample(paths, len(paths)):
            yield path.read_text("utf-8", "replace").replace("\0", "")


def _chat() -> Iterator[str]:
    words, dice = " ".join(topics[name] for name in sorted(topics)).split(), random.Random(2)
    while True:
        turns = [{"role": role, "content": " ".join(dice.choices(words, k=count))}
                 for role, count in (("user", 30), ("assistant", 80))]  # fmt: skip
        yield json.dumps({"messages": turns}) + "\n"


def _write(path: Path) -> Path:
    parts = {"prose.txt": _prose, "code.txt": _code, "chat.jsonl": _chat}[path.name]()
    with path.open("w", encoding="utf-8") as handle:
        size = 0
        while size < FILE_BYTES:
            size += handle.write(next(parts))
    return path


@contextmanager
def _corpus(shape: str) -> Iterator[tuple[SourceFile, str, list[str]]]:
    """A file to prepare, its stage, and the very texts that reach the tokenizer."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("SHARDS_DIR")) as folder:
        path = _write(Path(folder) / shape)
        stage = "sft" if shape == "chat.jsonl" else "pretrain"
        file = SourceFile(hashlib.sha256(path.read_bytes()).hexdigest(), shape, path)
        fields = [example.fields for example in iter_examples(path, stage)]
        texts = [row["text"] if "text" in row else turn["content"] for row in fields for turn in row.get("messages", (row,))]
        yield file, stage, texts


def _preparing(file: SourceFile, stage: str, threads: int) -> Callable[[], None]:
    tokenizer, made = load_tokenizer("gpt2"), iter(range(10_000))

    def act() -> None:
        prepare_dataset([file], tokenizer, file.path.parent / f"out-{threads}-{next(made)}", stage=stage, threads=threads,
                        shard_size_tokens=10_000_000, salt="x", validation_fraction=0.05)  # fmt: skip

    return act


def _bare(texts: list[str]) -> Callable[[], None]:
    """tiktoken as it comes, one text after another, into arrays, with nothing written."""
    encoding = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=load_tokenizer("gpt2").ranks,  # type: ignore[attr-defined]
                                 special_tokens={"<|endoftext|>": 50256})  # fmt: skip

    def act() -> None:
        for text in texts:
            encoding.encode_to_numpy(text, disallowed_special=())

    return act


def _mapping(texts: list[str], cores: int, folder: Path) -> Callable[[], None]:
    """`datasets.map` with a fast tokenizer of the same vocabulary; its cache of tables is its shards."""
    import datasets
    from transformers import AutoTokenizer

    from trainer.hf_tokenizer import write_hf_tokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    write_hf_tokenizer(load_tokenizer("gpt2"), folder)
    fast = AutoTokenizer.from_pretrained(folder)
    rows = datasets.Dataset.from_dict({"text": texts})

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": fast(batch["text"], return_attention_mask=False)["input_ids"]}

    def act() -> None:
        rows.map(encode, batched=True, remove_columns=["text"], num_proc=cores if cores > 1 else None,
                 cache_file_name=str(folder / "mapped.arrow"), load_from_cache_file=False)  # fmt: skip

    return act


def shards_against_tiktoken(runs: int) -> list[Figure]:
    """MB/s of text into GPT-2 shards: a core against bare tiktoken, and two threads against one by the clock."""
    figures = []
    for shape in SHAPES:
        with _corpus(shape) as (file, stage, texts):
            megabytes = sum(len(text.encode()) for text in texts) / 1e6
            acts = {"one": _preparing(file, stage, 1), "bare": _bare(texts), "two": _preparing(file, stage, 2)}
            wall, core = _in_turn(acts, runs)
            figures += [
                Figure(f"shards gpt2, {shape}, 1 thread", "MB/s of processor time", megabytes / core["one"],
                       megabytes / core["bare"], "tiktoken encode_to_numpy", runs),
                Figure(f"shards gpt2, {shape}, 2 threads over 1", "MB/s", megabytes / wall["two"], megabytes / wall["one"],
                       "one thread", runs),
            ]  # fmt: skip
    return figures


def _in_turn(acts: dict[str, Callable[[], None]], runs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each, by the clock and of processor time, run in turn after a warm-up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in acts}
    for run in range(runs + 1):
        for name, act in acts.items():
            begun, worked = time.perf_counter(), time.process_time()
            act()
            if run:
                taken[name].append((time.perf_counter() - begun, time.process_time() - worked))
    return tuple({name: statistics.median(pair[which] for pair in pairs) for name, pairs in taken.items()}
                 for which in (0, 1))  # type: ignore[return-value]  # fmt: skip


def shards_against_datasets(runs: int) -> list[Figure]:
    """MB/s of prose into shards, against `datasets.map` with the same vocabulary as a fast tokenizer; one core, then two."""
    with _corpus("prose.txt") as (file, stage, texts):
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        folder = file.path.parent / "hf"
        folder.mkdir()
        return [compare(f"shards gpt2, prose.txt, {cores} cores, against datasets.map", "MB/s", megabytes,
                        _preparing(file, stage, cores), "datasets.map + fast tokenizer", _mapping(texts, cores, folder), runs)
                for cores in (1, 2)]  # fmt: skip


BENCHMARKS: dict[str, Callable[[int], Figure | list[Figure]]] = {
    "shards gpt2, against bare tiktoken": shards_against_tiktoken,
    "shards gpt2, against datasets.map": shards_against_datasets,
}
