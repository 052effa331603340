"""Sampling: seeded, within the ids in use, ended by stop ids and by the block; repetition is measured."""

from __future__ import annotations

import pytest
import trainer_help

torch = pytest.importorskip("torch")

from guard.errors import UsageError  # noqa: E402
from trainer.generate import distinct_ratio, generate  # noqa: E402
from trainer.model import new_model  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402

MODEL = new_model(ModelConfig.from_recipe(trainer_help.SHAPE), 1).eval()


def _say(seed: int = 0, **changes: object) -> list[int]:
    options = {"max_tokens": 20, "ids_in_use": 265, **changes}
    return generate(MODEL, [72, 101], seed=seed, **options)  # type: ignore[arg-type]


def test_the_seed_decides() -> None:
    assert _say(1) == _say(1) != _say(2)
    assert len(_say(1)) == 20


def test_greedy_equals_recomputing_everything_without_a_cache() -> None:
    tokens = [72, 101]
    for _ in range(20):
        with torch.no_grad():
            tokens.append(int(MODEL.logits(MODEL(torch.tensor([tokens]))[0, -1])[:265].argmax()))
    assert _say(temperature=0.0) == tokens[2:]


def test_only_ids_in_use_and_only_the_top_k_are_sampled() -> None:
    assert max(_say(temperature=50.0, top_k=0, ids_in_use=7, max_tokens=40)) < 7
    assert _say(1, top_k=1) == _say(temperature=0.0)


def test_a_stop_id_ends_the_text_and_is_not_part_of_it() -> None:
    text = _say(3)
    assert _say(3, stop_ids=(text[5],)) == text[: text.index(text[5])]


def test_the_block_is_never_left_and_a_long_prompt_loses_its_beginning() -> None:
    block = MODEL.config.block_size
    assert len(generate(MODEL, [1] * 500, max_tokens=block * 2, ids_in_use=265)) == block - 1
    long = generate(MODEL, [9] * 100 + [5, 6, 7], max_tokens=block - 3, ids_in_use=265, seed=4)
    assert long == generate(MODEL, [5, 6, 7], max_tokens=block - 3, ids_in_use=265, seed=4)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError):
        generate(MODEL, [], max_tokens=5, ids_in_use=265)


def test_repetition_shows() -> None:
    assert distinct_ratio([5] * 64) == 1 / 64
    assert distinct_ratio([1, 2, 3, 4]) == 1.0
    assert distinct_ratio([]) == 1.0
