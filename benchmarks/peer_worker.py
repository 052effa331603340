"""One trainer in one process, for `benchmarks/peers.py`: makes its model, then steps when told and says what it took.

    python benchmarks/peer_worker.py '{"who": "nanogpt", "shape": {...}, "compile": false, "dtype": "float32", ...}'

A line with a number comes in: so many steps; a line of JSON goes out: CPU and wall seconds, the loss of every step, peak
memory. Every trainer gets the same batches, fused AdamW, clipping at 1.0 and the same learning rate. Run by the Python
of whoever is measured, so it imports nothing of Heirloom unless Heirloom is. Not here: turns, medians, ratios.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

Asked = dict[str, Any]
RATE, WARM_UP_STEPS = 1e-3, 2
NEVER = 1_000_000


def batch(asked: Asked, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets int64 [batch, block] of a step: drawn by its number alone."""
    shape, data = asked["shape"], asked["data"]
    starts = np.random.default_rng(step).integers(0, len(data) - shape["block"] - 1, shape["batch"])
    rows = np.stack([data[start : start + shape["block"] + 1] for start in starts]).astype(np.int64)
    whole = torch.from_numpy(rows)
    return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()


def plainly(asked: Asked, model: Any, loss_of: Callable[[Any, Any, Any], Any]) -> Callable[[int], float]:
    """The usual lines around a model: autocast where bf16 is asked for, backward, clip, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    called = torch.compile(model) if asked["compile"] else model

    def step(number: int) -> float:
        inputs, targets = batch(asked, number)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=asked["dtype"] == "bfloat16"):
            loss = loss_of(called, inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def nanogpt(asked: Asked) -> Callable[[int], float]:
    sys.path.insert(0, asked["nanogpt"])
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    shape = asked["shape"]
    model = GPT(GPTConfig(n_layer=shape["layers"], n_head=shape["heads"], n_embd=shape["width"], block_size=shape["block"],
                          vocab_size=shape["vocabulary"], dropout=0.0, bias=False))  # fmt: skip
    return plainly(asked, model, lambda called, inputs, targets: called(inputs, targets)[1])


def qwen3(asked: Asked) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = asked["shape"]
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=shape["vocabulary"], hidden_size=shape["width"], intermediate_size=shape["hidden"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"],
        head_dim=shape["width"] // shape["heads"], max_position_embeddings=shape["block"], tie_word_embeddings=True))  # fmt: skip


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def transformers(asked: Asked) -> Callable[[int], float]:
    return plainly(asked, qwen3(asked), lambda called, inputs, targets: cross_entropy(called(input_ids=inputs).logits, targets))


def litgpt(asked: Asked) -> Callable[[int], float]:
    from litgpt import GPT, Config  # type: ignore[import-not-found]

    shape = asked["shape"]
    model = GPT(Config(
        n_layer=shape["layers"], n_head=shape["heads"], n_embd=shape["width"], block_size=shape["block"],
        padded_vocab_size=shape["vocabulary"], vocab_size=shape["vocabulary"], rotary_percentage=1.0, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=shape["hidden"], parallel_residual=False,
    ))  # fmt: skip
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight  # tied, as all the others are
    return plainly(asked, model, lambda called, inputs, targets: cross_entropy(called(inputs), targets))


def heirloom(asked: Asked) -> Callable[[int], float]:
    from trainer.batches import Batch, StepBatch
    from trainer.hardware import keep_memory
    from trainer.model import new_model
    from trainer.model_config import ModelConfig
    from trainer.objectives import pretrain
    from trainer.stepper import Stepper

    shape = asked["shape"]
    size = shape["batch"] * shape["block"]
    config = ModelConfig(layers=shape["layers"], heads=shape["heads"], width=shape["width"], hidden=shape["hidden"],
                         block_size=shape["block"], vocab_size=shape["vocabulary"], qk_norm=shape["qk_norm"],
                         architecture="qwen3" if shape["qk_norm"] else "llama")  # fmt: skip
    recipe = {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0}
    keep_memory()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    stepper = Stepper(new_model(config, 1337), pretrain, recipe, asked["dtype"],
                      compile_tokens=size if asked["compile"] else 0)  # fmt: skip

    def step(number: int) -> float:
        inputs, targets = batch(asked, number)
        micro = [Batch(inputs, targets, torch.ones(shape["batch"], shape["block"]))]
        return stepper.step(StepBatch(np.arange(shape["batch"]), micro, float(size), size, size, 0), RATE, number)[0]

    return step


def trl(asked: Asked) -> None:
    """TRL owns its loop: the orders are read between two of its steps."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    shape = asked["shape"]
    rows = [batch({**asked, "shape": {**shape, "batch": 1}}, number)[0][0].tolist() for number in range(512)]
    turns = orders(shape)

    class Ordered(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_positional: Any, **_named: Any) -> None:
            turns.send(0.0)

        def on_train_begin(self, *_positional: Any, **_named: Any) -> None:
            next(turns)

    settings = SFTConfig(
        output_dir=asked["scratch"], per_device_train_batch_size=shape["batch"], max_steps=NEVER, learning_rate=RATE,
        lr_scheduler_type="constant", max_grad_norm=1.0, bf16=asked["dtype"] == "bfloat16", use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False, max_length=shape["block"],
        optim="adamw_torch_fused", torch_compile=asked["compile"], dataloader_num_workers=0)  # fmt: skip
    SFTTrainer(model=qwen3(asked), args=settings, train_dataset=Dataset.from_dict({"input_ids": rows}),
               processing_class=_tokenizer(), callbacks=[Ordered()]).train()  # fmt: skip


def _tokenizer() -> Any:
    """TRL wants one, though its data is ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
                                   pad_token="<pad>", eos_token="<eos>")  # fmt: skip


def orders(shape: Asked) -> Iterator[None]:
    """A generator: every `send(loss)` says that a step was made; between orders it waits for the next one."""
    begun = time.perf_counter()
    for _ in range(WARM_UP_STEPS):
        yield
    print(json.dumps({"ready": True, "warm_up_seconds": time.perf_counter() - begun}), flush=True)
    for line in sys.stdin:
        steps, losses = int(line), []
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            losses.append((yield))
        print(json.dumps({
            "cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall,
            "tokens": steps * shape["batch"] * shape["block"], "losses": losses,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }), flush=True)  # fmt: skip
    os._exit(0)  # nothing to tidy up, and TRL would train on


TRAINERS = {"nanogpt": nanogpt, "transformers": transformers, "litgpt": litgpt, "heirloom": heirloom}


def main() -> None:
    """Be the trainer that the first argument asks for."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(1337)
    asked["data"] = np.load(asked["tokens"])
    told, sys.stdout = sys.stdout, sys.stderr  # peers print on being made; only figures go out
    if asked["who"] == "trl":
        sys.stdout = told
        trl(asked)
        return
    step = TRAINERS[asked["who"]](asked)
    sys.stdout = told
    turns = orders(asked["shape"])
    next(turns)
    for number in range(NEVER):
        turns.send(step(number))


if __name__ == "__main__":
    main()
