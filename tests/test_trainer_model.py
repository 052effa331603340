"""Our decoder is the decoder of Hugging Face: same names, same config.json, same logits; initialised by its seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trainer_help

torch = pytest.importorskip("torch")

from guard.errors import CheckFailed, Damage, NotFound, UsageError  # noqa: E402
from trainer.model import KeyValueCache, new_model  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402
from trainer.tokenizer import load_tokenizer  # noqa: E402
from trainer.version_files import load_version, weights_are_finite, write_version_files  # noqa: E402

QWEN = {**trainer_help.SHAPE, "rope_theta": 12345.0}
LLAMA = {**trainer_help.SHAPE, "architecture": "llama", "qk_norm": False, "kv_heads": 4, "tie_embeddings": False,
         "norm_eps": 1e-5}  # fmt: skip


def _model(shape: dict[str, Any], seed: int = 1) -> Any:
    model = new_model(ModelConfig.from_recipe(shape), seed)
    with torch.no_grad():  # norms other than one, or a forgotten one would not show
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()) + len(name) / 100)
    return model.eval()


def _write(model: Any, folder: Path) -> Path:
    write_version_files(folder, model, load_tokenizer("char"), {"name": "tiny"}, None)
    return folder


@pytest.mark.parametrize("shape", [QWEN, LLAMA], ids=["qwen3", "llama"])
def test_transformers_loads_a_version_and_computes_the_same_logits(shape: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = _model(shape)
    _write(model, tmp_path / "v")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "v", output_loading_info=True)
    assert not any(info.values()), info
    assert type(theirs).__name__ == {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[shape["architecture"]]
    assert sum(p.numel() for p in theirs.parameters()) == model.config.parameter_count()
    tokens = torch.randint(0, 265, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(tokens)), theirs(tokens).logits, rtol=1e-5, atol=2e-5)
    tokenizer = load_tokenizer("char")
    new = theirs.generate(tokens[:1, :5], max_new_tokens=4, do_sample=False)
    assert new.shape[1] > 5 and theirs.generation_config.eos_token_id == list(tokenizer.stop_ids)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_weights_saved_by_transformers_load_into_our_decoder(architecture: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
             "head_dim": 16}  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(architecture, **sizes, tie_word_embeddings=False)
    ).eval()
    theirs.save_pretrained(tmp_path)
    _write(_model(QWEN), tmp_path / "donor")
    for name in ("tokenizer_state.json", "tokenizer_config.json"):
        (tmp_path / "donor" / name).rename(tmp_path / name)
    for leftover in (tmp_path / "donor").iterdir():
        leftover.unlink()
    (tmp_path / "donor").rmdir()
    ours, _tokenizer = load_version(tmp_path)
    tokens = torch.arange(30).view(1, 30)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, rtol=1e-5, atol=2e-5)


def test_a_version_read_back_is_the_same_model(tmp_path: Path) -> None:
    model = _model(QWEN)
    files = write_version_files(tmp_path / "v", model, load_tokenizer("char"), {"a": 1}, None)
    again, tokenizer = load_version(tmp_path / "v")
    assert tokenizer.tokenization == "char" and again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert files == write_version_files(tmp_path / "w", again, tokenizer, {"a": 1}, None), "equal weights, equal bytes"


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    config = ModelConfig.from_recipe(QWEN)
    first, second, other = (new_model(config, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_generation_with_a_cache_sees_what_a_whole_pass_sees() -> None:
    model = _model(QWEN)
    tokens = torch.arange(20).view(1, 20)
    cache = KeyValueCache(model.config.layers)
    with torch.no_grad():
        whole = model(tokens)
        parts = [model(tokens[:, start:end], cache) for start, end in ((0, 7), (7, 8), (8, 20))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_padding_on_the_right_changes_no_real_position() -> None:
    model = _model(QWEN)
    tokens = torch.arange(20).view(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(
            model(torch.cat((tokens, torch.zeros(1, 9, dtype=torch.int64)), dim=1))[:, :20], model(tokens)
        )


def test_norm_gradients_equal_torchs_own() -> None:
    from trainer.model import RMSNorm

    ours = RMSNorm(16, 1e-6)
    ours.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(2), requires_grad=True)
    towards = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(3))
    wanted = torch.autograd.grad(torch.nn.functional.rms_norm(x, (16,), ours.weight, 1e-6), (x, ours.weight), towards)
    torch.testing.assert_close(torch.autograd.grad(ours(x), (x, ours.weight), towards), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("pytorch_model.bin", b"x", CheckFailed, "pickled"),
        ("model.pt", b"x", CheckFailed, "pickled"),
        ("modeling_evil.py", b"x", CheckFailed, "no code"),
        ("model.safetensors", b"\xff" * 64, Damage, "not a sound safetensors"),
        ("model.safetensors", b"", Damage, "not a sound safetensors"),
        ("config.json", b'{"model_type":"qwen3","auto_map":{"AutoModel":"x.Y"}}', CheckFailed, "auto_map"),
        ("config.json", b'{"model_type":"gpt_oss"}', CheckFailed, "not one our decoder knows"),
        ("config.json", b"{", Damage, "not JSON"),
        ("tokenizer_state.json", b'{"tokenization":"char","content_hash":"00"}', CheckFailed, "tokenizer"),
        ("tokenizer_state.json", None, Damage, "missing"),
        ("model.safetensors", None, Damage, "missing"),
    ],
)
def test_what_could_run_or_is_not_what_it_claims_is_refused(
    name: str, content: bytes | None, error: type[Exception], words: str, tmp_path: Path
) -> None:
    folder = _write(_model(QWEN), tmp_path / "v")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(error, match=words):
        load_version(folder)


def test_links_and_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = _write(_model(QWEN), tmp_path / "v")
    other = _write(_model({**QWEN, "width": 64}), tmp_path / "w")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(Damage, match="has shape"):
        load_version(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(other / "config.json")
    with pytest.raises(CheckFailed, match="not a plain file"):
        load_version(folder)
    with pytest.raises(NotFound):
        load_version(tmp_path / "missing")


@pytest.mark.parametrize(
    "change", [{"kv_heads": 3}, {"qk_norm": False}, {"layers": 0}, {"colour": 1}, {"architecture": "mamba"}]
)
def test_impossible_shapes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ModelConfig.from_recipe({**QWEN, **change})


@pytest.mark.parametrize(
    "change",
    [{"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, {"attention_bias": True}, {"use_sliding_window": True},
     {"hidden_act": "gelu"}, {"quantization_config": {"bits": 4}}],
)  # fmt: skip
def test_features_our_decoder_lacks_are_refused_not_ignored(change: dict[str, Any]) -> None:
    with pytest.raises(CheckFailed, match="does not compute"):
        ModelConfig.from_hf({**ModelConfig.from_recipe(QWEN).to_hf(), **change})


def test_finite_weights_are_told_from_others() -> None:
    model = _model(QWEN)
    assert weights_are_finite(model)
    model.model.norm.weight.data[3] = float("inf")
    assert not weights_are_finite(model)
