"""Recipes that are edited, wrong or gone while jobs wait for them: a person's doing, and no file's fault.

What a recipe may say is in `test_trainer_recipe.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from runner_help import ask
from runner_help import state as state_of
from toy import Toy, chat_of
from toy_fixtures import _begin, _no_syncing, _template  # noqa: F401 - fixtures


@pytest.mark.parametrize(("written", "told"), [
    ("stage: sft\ntraining: {oops: 1\n", ("micro.yaml is not valid YAML or JSON: line 3, column 1:", "correct it there")),
    ("stage: sft\ntraining: {learning_rate: 7, batch_sequences: 4}\n", ("learning_rate = 7", "correct training.learning_rate")),
    (None, ("no recipe 'sft/small'", "put it there as sft/small.yaml")),
])  # fmt: skip
def test_a_recipe_that_is_wrong_or_gone_splits_and_fails_nothing_and_the_job_waits_with_what_to_do(
    begin: Callable[..., Toy], written: str | None, told: tuple[str, ...]
) -> None:
    toy = begin(coalesce__after=2)
    ask(toy, "queue.pause")
    kept = {path: path.read_text() for path in (toy.home.configs / "sft").iterdir()}
    for path in kept:
        path.unlink()
    if written:
        (toy.home.configs / "sft" / "micro.yaml").write_text(written)
    for number in range(2):
        toy.drop(f"f{number}.jsonl", chat_of(12, seed=number * 100))
    toy.settle()
    ask(toy, "queue.resume")
    toy.settle()
    ((number, _kind, state, why),) = [row for row in toy.jobs()[1:] if "trained together" not in row[3]]
    assert state == "parked" and "\n" not in why and all(words in why for words in told)
    for path, text in kept.items():
        path.write_text(text)
    ask(toy, "queue.retry", job=number)
    toy.settle()
    assert state_of(toy, number) == "done" and len(toy.versions()) == 2
