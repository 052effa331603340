"""What replay is worth: how much the loss on earlier text rises while a small model learns other text.

One base learns prose; from there it learns code-like lines, three times, with none, a tenth and a quarter of replay. Held-out
losses in fp32 by the trainer's own evaluation. Made text, so that anybody gets the same figures: not a claim about yours.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Figure
from guard.bitmap import pack_bitmap
from trainer.batches import Feed
from trainer.choose import select_new
from trainer.dataset import Dataset
from trainer.evaluate import evaluate
from trainer.loop import LoopPlan, train
from trainer.model import Decoder, new_model
from trainer.model_config import ModelConfig
from trainer.objectives import find_objective
from trainer.prepare import SourceFile, prepare_dataset
from trainer.recipe import parse_recipe
from trainer.replay import ReplaySource, add_replay
from trainer.selection import training_steps
from trainer.tokenizer import load_tokenizer

__all__ = ["BENCHMARKS", "forgetting_by_replay"]

FRACTIONS = (0.0, 0.10, 0.25)
_SHAPE = {"architecture": "qwen3", "layers": 2, "heads": 4, "kv_heads": 4, "width": 64, "hidden": 192, "block_size": 128,
          "vocab_size": 320, "tie_embeddings": True, "qk_norm": True}  # fmt: skip
_BLOCK, _BATCH, _SEED = 128, 8, 1337
_PROSE = ("the ship sails over a calm sea while the old captain sleeps and dreams of home where his daughter waits by the fire "
          "and reads him letters that never came to any harbour in the north").split()  # fmt: skip
_CODE = "fn main() { let mut x = vec![1, 2, 3]; for i in x.iter() { println!(\"{}\", i); } return Ok(()); } impl Trait".split()


def _rows(words: list[str], count: int, seed: int) -> str:
    dice = random.Random(seed)
    return "\n".join(" ".join(dice.choice(words) for _ in range(20)) for _ in range(count)) + "\n"


def _dataset(folder: Path, name: str, text: str) -> Dataset:
    source = folder / f"{name}.txt"
    source.write_text(text, "utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return prepare_dataset([SourceFile(digest, source.name, source)], load_tokenizer("char"), folder / name, stage="pretrain",
                           shard_size_tokens=1 << 20, salt="forgetting", validation_fraction=0.1)  # fmt: skip


def _learn(model: Decoder, folder: Path, data: Dataset, replay: list[ReplaySource], fraction: float, rate: float) -> None:
    """One epoch of what is new in `data`, with that share of replay. Changes the model."""
    training = parse_recipe({"stage": "pretrain", "training": {"learning_rate": rate, "batch_sequences": _BATCH}}).training
    chosen = select_new(data, stage="pretrain", known_fps=None, block_size=_BLOCK, packing="bestfit")
    chosen = add_replay(chosen, replay, fraction=fraction, block_size=_BLOCK, seed=_SEED, packing="bestfit")
    objective = find_objective("pretrain")
    feed = Feed(chosen.selection, objective, seed=_SEED, batch_sequences=_BATCH, micro_sequences=_BATCH, use_mask=False)
    folder.mkdir()
    steps = training_steps(chosen.selection, _BATCH, epochs=1)
    plan = LoopPlan(steps=steps, training=training.model_dump() | {"on_anomaly": "halt"},
                    dtype="float32", staging=folder, identity="benchmark", snapshot_seconds=0.0)  # fmt: skip
    model.train()
    train(model, feed, objective, plan, stop=lambda: False, clock=lambda: 0.0)
    model.eval()


def _loss(model: Decoder, data: Dataset) -> float:
    found = evaluate(model, data.val, find_objective("pretrain"), max_tokens=16_384, use_mask=False).loss
    assert found is not None, "the held-out split has text"
    return found


def forgetting_by_replay(_runs: int) -> list[Figure]:
    """For each share of replay the loss on the earlier text after (ours) and before (other); deterministic, so run once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as place:
            return _figures(Path(place))
    finally:
        torch.set_num_threads(threads)


def _figures(folder: Path) -> list[Figure]:
    prose, code = _dataset(folder, "prose", _rows(_PROSE, 1500, 1)), _dataset(folder, "code", _rows(_CODE, 1500, 2))
    base = new_model(ModelConfig.from_recipe(_SHAPE), _SEED)
    _learn(base, folder / "first", prose, [], 0.0, rate=0.002)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    before, untaught = _loss(base, prose), _loss(base, code)
    count = int(prose.files[0]["examples"])
    source = ReplaySource(prose, ((0, pack_bitmap(range(count), count)),))
    figures = []
    for fraction in FRACTIONS:
        base.load_state_dict(weights)
        _learn(base, folder / f"replay-{fraction}", code, [source], fraction, rate=0.001)
        after, learnt = _loss(base, prose), _loss(base, code)
        figures += [Figure(f"replay {fraction:.0%}: loss on the old text", "nat", after, before, "before", 1),
                    Figure(f"replay {fraction:.0%}: loss on the new text", "nat", learnt, untaught, "before", 1)]
    return figures


BENCHMARKS = {"forgetting by share of replay": forgetting_by_replay}
