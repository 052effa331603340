"""Making a home with its first version: `init` returns when `v001_baseline` is sealed, not before.

An `init` that was cut short is finished by running it again; a home that has a version is never touched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.client import local_engine
from guard.clock import SYSTEM_CLOCK, Clock
from guard.errors import CheckFailed, UsageError
from guard.home import Home
from guard.store.create import check_place, create_home
from guard.store.jobs import add_job, find_job, jobs_in
from guard.store.keeper import Keeper, open_reader
from guard.store.versions import all_versions
from trainer.estimate import version_bytes
from trainer.hf_tokenizer import keep_tokenizer, open_tokenizer
from trainer.model_config import ModelConfig
from trainer.recipe import Recipe, resolve
from trainer.recipe_files import find_recipe, load_recipe
from trainer.tokenizer_about import about_tokenizer

__all__ = ["SHIPPED_CONFIGS", "base_recipe", "base_shape", "init_home", "queue_base"]

SHIPPED_CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TOKENIZATIONS = ("gpt2", "char", "hf")


def base_recipe(home: Home, recipe: str) -> Recipe:
    """The recipe of a base, from the home's configs or the shipped ones. Raises UsageError, NotFound."""
    chosen = load_recipe(find_recipe(recipe, [home.configs, SHIPPED_CONFIGS], "pretrain"))
    if chosen.model is None:
        raise UsageError(f"the recipe {recipe} describes no model", subject=recipe,
                         hint="a base needs a recipe of configs/pretrain/")  # fmt: skip
    return chosen


def base_shape(recipe: Recipe, tokenization: str, tokenizer_folder: Path | None = None) -> ModelConfig:
    """The shape of a base: what its recipe says, with the vocabulary of its tokenizer (in its folder, when it has one)."""
    assert recipe.model is not None, "base_recipe refuses a recipe without a model"
    vocabulary = recipe.model.vocab_size or about_tokenizer(tokenization, tokenizer_folder).padded_vocab_size
    return ModelConfig.from_recipe(recipe.model.model_dump() | {"vocab_size": vocabulary})


def queue_base(keeper: Keeper, recipe: str, tokenization: str, *, line: str, slug: str, seed: int | None = None,
               tokenizer_folder: Path | None = None) -> int:  # fmt: skip
    """Queue the making of a base inside the current transaction; returns the job. Raises UsageError, NotFound.

    `tokenizer_folder`: kept in this home, for the tokenization hf.
    """
    if tokenization not in TOKENIZATIONS:
        raise UsageError(f"unknown tokenization {tokenization!r}", subject=tokenization,
                         hint=f"one of {', '.join(TOKENIZATIONS)}")  # fmt: skip
    chosen = base_recipe(keeper.home, recipe)
    if seed is not None:
        chosen = resolve(chosen, {"seed": seed})
    return add_job(keeper.ledger, kind="base", stage="base", line=line, slug=slug,
                   request={"recipe": chosen.as_dict(), "tokenization": tokenization, "origin": "init",
                            **({"tokenizer_folder": str(tokenizer_folder.relative_to(keeper.home.root))}
                               if tokenizer_folder else {})})  # fmt: skip


def init_home(
    directory: Path, *, recipe: str, tokenization: str, seed: int | None, progress: Callable[[str], None],
    dry_run: bool = False, clock: Clock = SYSTEM_CLOCK, tokenizer: Path | None = None, template: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make a home and seal its base. Raises CheckFailed over a finished home, UsageError for a wrong recipe.

    A tokenizer or template that cannot be used is refused (NotFound, CheckFailed, UsageError) before anything is made.

    `dry_run`: makes nothing, and returns what would be made: home, version, recipe, tokenization, seed, parameters, bytes.
    """
    home = Home(directory.expanduser().absolute())
    # A wrong name must be refused before the first folder is made.
    if tokenization not in TOKENIZATIONS:
        raise UsageError(f"unknown tokenization {tokenization!r}", hint=f"one of {', '.join(TOKENIZATIONS)}")
    if (tokenization == "hf") != (tokenizer is not None) or (template is not None and tokenizer is None):
        raise UsageError("--tokenizer DIR and --template belong to --tokenization hf", subject="--tokenizer",
                         hint="heirloom init --tokenization hf --tokenizer DIR")  # fmt: skip
    chosen = base_recipe(home, recipe)
    if chosen.stage != "pretrain":
        raise UsageError(f"the recipe {recipe} is for {chosen.stage}; a base is made by one for pretraining",
                         subject=recipe, hint="--recipe pretrain/small")  # fmt: skip
    # So must a tokenizer that cannot be used: a home without a first version can learn nothing that is dropped.
    if tokenizer is not None:
        open_tokenizer(tokenizer, template)
    if dry_run:
        return _would_make(home, chosen, tokenization, seed, tokenizer)
    if not home.store_id_file.exists():
        check_place(home)
        progress(f"making a home in {home.root}")
        create_home(home, clock=clock, recipes=SHIPPED_CONFIGS)
    with local_engine(home, "init") as engine:
        keeper = engine.keeper
        if all_versions(keeper.ledger):
            raise _home_already(home)
        waiting = [job for job in jobs_in(keeper.ledger, "queued", "training", "held") if job.kind == "base"]
        if waiting:
            number = waiting[0].id
        else:
            kept = None
            if tokenizer is not None:
                kept = keep_tokenizer(tokenizer, home.configs / "tokenizers", template)
            with keeper.ledger.transaction():
                number = queue_base(keeper, recipe, tokenization, line="policy", slug="baseline", seed=seed,
                                    tokenizer_folder=kept)  # fmt: skip
        progress("making the base from its recipe")
        return _work_off(engine, number)


def _home_already(home: Home) -> CheckFailed:
    return CheckFailed(f"{home.root} is a home already", subject=str(home.root),
                       hint=f"heirloom --home {home.root} status")  # fmt: skip


def _would_make(home: Home, recipe: Recipe, tokenization: str, seed: int | None,
                tokenizer: Path | None) -> dict[str, Any]:  # fmt: skip
    if not home.store_id_file.exists():
        check_place(home)
    else:
        with open_reader(home) as keeper:
            if all_versions(keeper.ledger):
                raise _home_already(home)
    shape = base_shape(recipe, tokenization, tokenizer)
    return {"home": str(home.root), "version": "v001_baseline", "recipe": recipe.name, "tokenization": tokenization,
            "seed": recipe.seed if seed is None else seed, "parameters": shape.parameter_count(),
            "bytes": version_bytes(shape)}  # fmt: skip


def _work_off(engine: Any, number: int) -> dict[str, Any]:
    keeper = engine.keeper
    while True:
        engine.loop(keeper.clock.monotonic())
        job = find_job(keeper.ledger, number)
        if job.state in ("failed", "parked", "held", "cancelled"):
            raise CheckFailed(f"the base could not be made: {job.reason}", subject=f"job {number}",
                              hint="mend the cause and run init again")  # fmt: skip
        if job.state == "done" and engine.idle:
            version = all_versions(keeper.ledger)[0]
            return {"home": str(keeper.home.root), "store_id": keeper.home.store_id(), "version": version.name,
                    "parameters": version.record["metrics"].get("parameters"), "line": version.line}  # fmt: skip
        engine.reactor.poll(engine.wait_seconds(keeper.clock.monotonic()))
