"""What a person should know of a plan that every check passes: no refusal, and nothing a check would say.

Not here: the checks (`guard/checks/preflight.py`), costs (`daemon/costs.py`).
"""

from __future__ import annotations

from trainer.curriculum import curriculum_of
from trainer.model_config import ModelConfig
from trainer.recipe import Recipe
from trainer.schedule import warm_up_steps

__all__ = ["plan_warnings"]


def plan_warnings(recipe: Recipe, base: ModelConfig, steps: int, *, named: bool) -> list[str]:
    """Sentences about a recipe for a fork of a base of that shape in so many steps; `named`: a person asked for this recipe."""
    found = []
    training = recipe.training
    warm_up = warm_up_steps(steps, training.model_dump())
    if steps < warm_up:
        found.append(f"the warm-up takes {warm_up:,} steps and the job has {steps:,}: it ends before it reaches learning_rate "
                     f"= {training.learning_rate:g}; training.warmup_fraction suits any length")  # fmt: skip
    found += curriculum_of(training.model_dump(), base.block_size)[1]
    if named and recipe.model is not None:
        asked = recipe.model.model_dump()
        other = [f"{name} {getattr(base, name)}, not {asked[name]}" for name in ("layers", "width", "heads", "block_size")
                 if asked.get(name) and asked[name] != getattr(base, name)]  # fmt: skip
        if other:
            found.append(f"a fork keeps its base's shape; what the recipe says of another is left out: {'; '.join(other)}")
    return found
