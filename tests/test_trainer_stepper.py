"""One optimiser step: what is trained in bf16, what stays fp32, and what compiling must not change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from guard.errors import DataFault  # noqa: E402
from trainer import compiling  # noqa: E402
from trainer.batches import Batch, StepBatch  # noqa: E402
from trainer.model import Decoder, new_model  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402
from trainer.objectives import pretrain  # noqa: E402
from trainer.stepper import Stepper  # noqa: E402

_TRAINING = {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0}
_CONFIG = ModelConfig(layers=2, heads=2, width=32, hidden=64, block_size=32, vocab_size=64)


def _batch(step: int, rows: int = 4, tokens: int = 24) -> StepBatch:
    """Rows that count upwards: easy to learn."""
    start = torch.arange(rows)[:, None] * 7 + step
    ids = (start + torch.arange(tokens + 1)) % 64
    micro = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(rows, tokens))
    return StepBatch(np.arange(rows), [micro], float(rows * tokens), rows * tokens, rows * tokens, 0)


def _run(
    dtype: str, steps: int = 30, compile_tokens: int = 0, shapes: tuple[tuple[int, int], ...] = ((4, 24),)
) -> tuple[Decoder, list[float]]:
    model = new_model(_CONFIG, 3)
    stepper = Stepper(model, pretrain, _TRAINING, dtype, compile_tokens=compile_tokens)
    losses = [stepper.step(_batch(step, *shapes[step % len(shapes)]), 3e-3, step)[0] for step in range(steps)]
    stepper.finish()
    return model, losses


def test_bf16_learns_as_fp32_does() -> None:
    _model, exact = _run("float32")
    _model, rounded = _run("bfloat16")
    assert exact[-1] < exact[0] - 0.5
    np.testing.assert_allclose(rounded, exact, rtol=0.01)


def test_bf16_trains_fp32_weights_and_leaves_them_in_the_model() -> None:
    model, _losses = _run("bfloat16", steps=3)
    weights = dict(model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    matrix = weights["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(matrix, matrix.bfloat16().float()), "what was trained has more digits than bf16"
    assert sorted(weights) == sorted(name for name, _ in new_model(_CONFIG, 3).named_parameters())
    assert model(torch.zeros(1, 4, dtype=torch.int64)).dtype is torch.float32


def test_small_updates_are_not_lost_in_bf16() -> None:
    """A bf16 weight has 8 bits: a step of a thousandth of it would be rounded away without the fp32 weight beside."""
    model = new_model(_CONFIG, 3)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    stepper = Stepper(model, pretrain, {**_TRAINING, "weight_decay": 0.0}, "bfloat16")
    for step in range(3):
        stepper.step(_batch(step), 1e-6, step)
    stepper.finish()
    assert (model.model.layers[0].mlp.up_proj.weight != before).float().mean() > 0.9


def test_a_run_in_bf16_goes_on_from_its_tensors_as_if_uninterrupted() -> None:
    whole, _losses = _run("bfloat16", steps=6)
    first = new_model(_CONFIG, 3)
    stepper = Stepper(first, pretrain, _TRAINING, "bfloat16")
    for step in range(3):
        stepper.step(_batch(step), 3e-3, step)
    weights, moments = ({name: tensor.detach().clone() for name, tensor in part.items()} for part in stepper.tensors())
    second = new_model(_CONFIG, 99)
    resumed = Stepper(second, pretrain, _TRAINING, "bfloat16")
    resumed.load(weights, moments)
    for step in range(3, 6):
        resumed.step(_batch(step), 3e-3, step)
    resumed.finish()
    for (name, one), (_name, other) in zip(whole.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_micro_batches_give_the_gradient_of_the_whole_batch_in_bf16() -> None:
    def norm(size: int) -> float:
        whole = _batch(0)
        micro = whole.micro_batches[0]
        parts = [Batch(micro.inputs[at : at + size], micro.targets[at : at + size], micro.weights[at : at + size])
                 for at in range(0, 4, size)]  # fmt: skip
        batch = StepBatch(whole.sequences, parts, whole.weight, whole.tokens, whole.loss_tokens, 0)
        return Stepper(new_model(_CONFIG, 3), pretrain, _TRAINING, "bfloat16").step(batch, 1e-3, 0)[1]

    assert norm(1) == pytest.approx(norm(4), rel=0.01)


@pytest.mark.parametrize("limit", [0.05, 0.0, 1e9])
def test_gradients_beyond_the_limit_are_scaled_down_to_it_before_the_update(limit: float) -> None:
    """Beside plain clipping and a plain AdamW, over steps beyond the limit and, where it is far away or none, within it."""
    ours, plain = new_model(_CONFIG, 3), new_model(_CONFIG, 3)
    stepper = Stepper(ours, pretrain, {**_TRAINING, "weight_decay": 0.0, "grad_clip": limit}, "float32")
    adam = torch.optim.AdamW(plain.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        batch = _batch(step)
        _loss, norm = stepper.step(batch, 3e-3, step)
        (pretrain.loss(plain, batch.micro_batches[0], torch.float32) / batch.weight).backward()
        before = torch.nn.utils.clip_grad_norm_(plain.parameters(), limit or float("inf"))
        assert norm == pytest.approx(float(before), rel=1e-4) and norm > 0.05
        adam.step()
        adam.zero_grad()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        # A step moves by about the rate, whatever the gradient; what is compared is the last of the digits.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5, msg=lambda told, name=name: f"{name}: {told}")


def test_one_step_beyond_the_limit_leaves_the_next_as_it_is() -> None:
    """The limit of one step must not scale the gradients of another: the moments would keep it."""
    stepper = Stepper(new_model(_CONFIG, 3), pretrain, {**_TRAINING, "grad_clip": 1e9}, "float32")
    stepper._clip_at = 0.05
    stepper.step(_batch(0), 3e-3, 0)
    stepper._clip_at = 1e9
    before = {name: tensor.clone() for name, tensor in stepper.tensors()[1].items()}
    _loss, norm = stepper.step(_batch(1), 3e-3, 1)
    fresh = [(tensor - 0.9 * before[name]) / 0.1 for name, tensor in stepper.tensors()[1].items() if name.endswith("exp_avg")]
    assert float(torch.nn.utils.get_total_norm(fresh)) == pytest.approx(norm, rel=1e-3) and norm > 0.05


def test_a_batch_without_loss_is_refused() -> None:
    stepper = Stepper(new_model(_CONFIG, 3), pretrain, _TRAINING, "float32")
    with pytest.raises(DataFault, match="step 8 has no token that bears loss"):
        stepper.step(StepBatch(np.arange(1), [], 0.0, 0, 0, 0), 1e-3, 7)


@pytest.fixture
def _compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    torch._dynamo.config.error_on_recompile = False


def test_a_packed_batch_is_filled_up_with_documents_that_change_nothing() -> None:
    lengths = (30, 32, 25, 20)
    ids = torch.randint(0, 64, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    documents = torch.repeat_interleave(torch.tensor(lengths))[None]
    packed = Batch(ids, ids.roll(-1, 1), torch.ones(1, sum(lengths)), documents)
    whole = compiling.fitted(packed, 128, _CONFIG.block_size)
    assert whole is not None and whole.documents is not None and whole.inputs.shape == whole.documents.shape == (1, 128)
    assert int(torch.bincount(whole.documents[0]).max()) <= _CONFIG.block_size
    model = new_model(_CONFIG, 3)
    losses = [float(pretrain.loss(model, batch, torch.float32).detach()) for batch in (packed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert compiling.fitted(packed, 160, 32) is None, "two thirds full: not worth it"
    assert compiling.fitted(packed, 96, 32) is None, "longer than what is compiled for"
    rows = ids[:, :64].view(2, 32)
    assert compiling.fitted(Batch(rows, rows, torch.ones(2, 32)), 128, 32) is None, "rows are not filled up"


def _shapes_change_no_bit() -> None:
    shapes = ((4, 32), (1, 30), (2, 9), (1, 1))
    _model, losses = _run("float32", 8, shapes=shapes)
    model, compiled = _run("float32", 8, compile_tokens=128, shapes=shapes)
    np.testing.assert_allclose(compiled, losses, rtol=1e-4)
    assert model.halves is None
    # A resumed run begins with another shape: what is compiled must not depend on which came first.
    other = new_model(_CONFIG, 3)
    stepper = Stepper(new_model(_CONFIG, 5), pretrain, _TRAINING, "float32", compile_tokens=128)
    stepper.step(_batch(2, 2, 9), 3e-3, 2)
    stepper.finish()
    again = Stepper(other, pretrain, _TRAINING, "float32", compile_tokens=128)
    for step in range(8):
        again.step(_batch(step, *shapes[step % 4]), 3e-3, step)
    again.finish()
    for (name, one), (_name, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.usefixtures("_compiler")
def test_whole_layers_are_handed_to_the_compiler_once_whatever_shapes_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    _shapes_change_no_bit()


@pytest.mark.usefixtures("_compiler")
def test_another_compilation_in_mid_run_is_an_error_and_never_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    model = new_model(_CONFIG, 3)
    halves = compiling.compile_layers(model, 64)
    model.bfloat16()
    model.compute_dtype, model.halves = torch.bfloat16, halves
    with pytest.raises(torch._dynamo.exc.RecompileError):
        model(torch.zeros(2, 32, dtype=torch.int64))


@pytest.mark.sweep
@pytest.mark.usefixtures("_compiler")
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_layers_learn_the_same_and_shapes_met_on_the_way_change_no_bit() -> None:
    _shapes_change_no_bit()
    assert list(compiling.cache_folder().iterdir()), "what was compiled is kept for the next process"
