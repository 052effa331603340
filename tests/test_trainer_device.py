"""Devices: what moves where, what happens without one, and which micro-batch is kept. No GPU is asked for.

The `meta` device takes a GPU's place: tensors there have a place and a shape and no content, which is enough to see what
would be moved. What only a card can tell is not tested here, and docs/PERFORMANCE.md says so.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_help

from guard.errors import EnvironmentFault
from trainer import device as devices
from trainer.batches import StepBatch, pad, side_by_side
from trainer.compiling import compile_layers
from trainer.device import Placed, find_micro, fitting_micro, move_model, prepare_device
from trainer.loop import Outcome
from trainer.model import new_model
from trainer.model_config import ModelConfig
from trainer.precision import WorkingCopy
from trainer.train_job import _exactness, run_base, run_train

ROW = (np.arange(5, dtype=np.int64), np.arange(1, 6, dtype=np.int64), np.ones(5, dtype=np.float32))


class One:
    def step(self, step: int) -> StepBatch:
        return StepBatch(np.arange(2), [pad([ROW, ROW]), side_by_side([ROW, ROW])], 20.0, 20, 20, 0)


def test_on_the_processor_a_batch_is_the_very_same_object() -> None:
    source = One()
    batch = source.step(0)
    source.step = lambda _step: batch  # type: ignore[method-assign]
    assert Placed(source, "cpu").step(0) is batch


def test_on_a_device_every_tensor_of_every_micro_batch_lies_there_and_the_counts_stay() -> None:
    placed = Placed(One(), "meta").step(0)
    for micro in placed.micro_batches:
        found = [getattr(micro, item.name) for item in dataclasses.fields(micro)]
        assert {value.device.type for value in found if value is not None} == {"meta"}
    assert placed.micro_batches[0].documents is None and placed.micro_batches[1].documents is not None
    assert (placed.tokens, placed.weight) == (20, 20.0)


def test_a_model_moves_with_the_tables_that_are_no_parameters() -> None:
    model = new_model(ModelConfig.from_recipe(trainer_help.SHAPE), 1)
    tensors = [*model.parameters(), model._cos, model._sin]
    move_model(model, "cpu")
    assert all(one is other for one, other in zip(tensors, [*model.parameters(), model._cos, model._sin], strict=True))
    move_model(model, "meta")
    assert {tensor.device.type for tensor in (*model.parameters(), model._cos, model._sin)} == {"meta"}


def test_the_working_copy_and_what_is_computed_lie_where_the_model_lies() -> None:
    model = new_model(ModelConfig.from_recipe(trainer_help.SHAPE), 1)
    move_model(model, "meta")
    copy = WorkingCopy(model)
    copy.spread()
    held = dict(model.named_parameters())
    assert {parameter.device.type for parameter in held.values()} == {"meta"}
    assert {held[name].dtype for name in held if "proj" in name} == {torch.bfloat16}
    assert {weight.dtype for weight in copy.trained().values()} == {torch.float32}
    micro = Placed(One(), "meta").step(0).micro_batches[0]
    assert model(micro.inputs).device.type == "meta"


def test_a_plan_for_a_gpu_that_is_gone_is_the_machine_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match="torch finds none"):
        prepare_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    prepare_device("cuda")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", "deterministic cuBLAS wants it before its first handle"
    prepare_device("cpu")


def test_a_compiled_plan_waits_for_its_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_base(trainer_help.base_job(tmp_path / "base"))
    data = trainer_help.make_dataset(tmp_path / "data")
    job = trainer_help.train_job(tmp_path / "job", tmp_path / "base" / "out", data, compile=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EnvironmentFault, match=r"no C\+\+ compiler"):
        run_train(job)


def test_a_compiler_that_fails_is_the_machine_s_fault_and_not_the_data_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError("CppCompileError: g++ said no\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, **_options: broken)
    model = new_model(ModelConfig(layers=1, heads=1, width=8, hidden=16, block_size=8, vocab_size=16), 1)
    with pytest.raises(EnvironmentFault, match=r"could not be compiled: CppCompileError: g\+\+ said no$") as told:
        compile_layers(model, 16)
    assert "CXX" in told.value.hint and model.halves is None
    assert all(weight.grad is None for weight in model.parameters())


def _out_of_memory_above(limit: int, tried: list[int]) -> Any:
    def attempt(micro: int) -> None:
        tried.append(micro)
        if micro > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt


def test_the_micro_batch_is_halved_until_it_fits_and_the_step_keeps_its_sequences() -> None:
    tried: list[int] = []
    assert find_micro(48, _out_of_memory_above(13, tried)) == 12 and tried == [48, 24, 12]
    assert find_micro(1, _out_of_memory_above(1, [])) == 1
    with pytest.raises(EnvironmentFault, match="not even one sequence"):
        find_micro(3, _out_of_memory_above(0, []))
    with pytest.raises(ZeroDivisionError):
        find_micro(4, lambda micro: micro / 0)


def test_the_trial_takes_whole_steps_of_the_base_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    run_base(trainer_help.base_job(base))
    before = (base / "out" / "model.safetensors").read_bytes()
    seen: list[tuple[int, ...]] = []
    really = devices.Stepper.step

    def step(self: Any, batch: StepBatch, rate: float, number: int) -> tuple[float, float]:
        seen.append(tuple(batch.micro_batches[0].inputs.shape))
        assert len(batch.micro_batches) == 2, "a pass beside the gradients of another"
        if batch.micro_batches[0].inputs.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(self, batch, rate, number)

    monkeypatch.setattr(devices.Stepper, "step", step)
    micro = fitting_micro(base / "out", "pretrain", trainer_help.TRAINING, "float32", "cpu", 8)
    assert micro == 2 and seen == [(8, 48), (4, 48), (2, 48), (2, 48)], "twice: the second step stands beside the moments"
    assert (base / "out" / "model.safetensors").read_bytes() == before


def test_a_gpu_s_bits_are_only_declared() -> None:
    assert _exactness(Outcome(), "cpu") == ("EXACT", "one uninterrupted run")
    assert _exactness(Outcome(), "cuda")[0] == "DECLARED"


def test_a_plan_of_an_earlier_release_trains_the_same_bits_as_one_that_names_the_processor(tmp_path: Path) -> None:
    run_base(trainer_help.base_job(tmp_path / "base"))
    data = trainer_help.make_dataset(tmp_path / "data")
    base = tmp_path / "base" / "out"
    old = run_train(trainer_help.train_job(tmp_path / "old", base, data, steps=3))
    new = run_train(trainer_help.train_job(tmp_path / "new", base, data, steps=3, compile=False, device="cpu"))
    assert old["weights_sha256"] == new["weights_sha256"] and old["hardware"] == new["hardware"]
    assert new["peak_memory_bytes"] > 100e6
