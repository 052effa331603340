"""May this version be moved to the trash? The rules of DESIGN 9 "Delete", and the labels that warn beforehand.

Facts in, a verdict with every reason out. A base and an active version are protected whatever anybody types; a version
that others stand on needs `--force`, `--confirm-lineage` and its full name typed; a leaf needs `--force` alone.
A confirmation that names something else is a refusal even where none was needed: the person meant another version.
Not here: finding the facts or moving anything (`guard/store/trash.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from guard.errors import HeirloomError, NotConfirmed, Protected

__all__ = [
    "ACTIVE",
    "BASE",
    "CHILDREN",
    "DeletionFacts",
    "DeletionVerdict",
    "judge_deletion",
    "lock_label",
    "orphan_prompt",
]

BASE = "LOCKED (base model)"
CHILDREN = "LOCKED (has children)"
ACTIVE = "ACTIVE"


@dataclass(frozen=True)
class DeletionFacts:
    """Everything the verdict depends on."""

    name: str
    has_parent: bool
    tip_of: tuple[str, ...] = ()
    """Lines whose active version this is."""
    dependants: tuple[str, ...] = ()
    """Names of the versions that stand on it: children, and whatever used it as another input."""
    jobs: tuple[int, ...] = ()
    """Unfinished jobs that will train from it."""
    force: bool = False
    confirm_lineage: bool = False
    confirm: str | None = None
    """The name a person typed; None when nobody was asked yet."""


@dataclass(frozen=True)
class DeletionVerdict:
    """The answer. `reasons` holds every reason to refuse, empty when the version may go to the trash."""

    reasons: tuple[str, ...]
    hint: str = ""
    prompt: str = ""
    """What to ask the person; set whenever a typed name is what is missing or wrong."""
    exit_code: int = 0

    @property
    def ok(self) -> bool:
        return not self.reasons

    def error(self, name: str) -> HeirloomError:
        """The refusal as an error of the right class (exit 5 or 6). Only for a verdict that is not ok."""
        assert self.reasons
        kind = Protected if self.exit_code == Protected.exit_code else NotConfirmed
        return kind("; ".join(self.reasons), hint=self.hint, subject=name)


def lock_label(*, has_parent: bool, active: bool, has_dependants: bool) -> str:
    """The word beside a version in lists; the strictest of the rules that hold, "" when it may simply be deleted."""
    if not has_parent:
        return BASE
    if active:
        return ACTIVE
    return CHILDREN if has_dependants else ""


def orphan_prompt(dependants: tuple[str, ...]) -> str:
    """Seed 002's question, word for word."""
    return f"This will orphan {', '.join(dependants)}. Type model name to confirm:"


def judge_deletion(facts: DeletionFacts) -> DeletionVerdict:
    """Judge one deletion; protection is told before confirmation is asked for."""
    reasons, hints = _protections(facts)
    if reasons:
        return DeletionVerdict(tuple(reasons), hints[0], exit_code=Protected.exit_code)
    prompt = orphan_prompt(facts.dependants) if facts.dependants else ""
    if facts.confirm is None:
        if not prompt:
            return DeletionVerdict(())
        hint = f"--confirm {facts.name} confirms it where nobody can type"
        return DeletionVerdict((prompt,), hint, prompt, NotConfirmed.exit_code)
    if facts.confirm != facts.name:
        reason = f"{facts.confirm!r} is not the full name of the version to delete; nothing was moved"
        return DeletionVerdict((reason,), f"type {facts.name} exactly", prompt, NotConfirmed.exit_code)
    return DeletionVerdict(())


def _protections(facts: DeletionFacts) -> tuple[list[str], list[str]]:
    """Every rule that protects the version, with what to do about each, the hardest first."""
    found: list[tuple[str, str]] = []
    if not facts.has_parent:
        found.append((f"{facts.name} is a base model: everything was grown from it", "a base is never deleted"))
    if facts.tip_of:
        lines = ", ".join(facts.tip_of)
        found.append((f"{facts.name} is active on {lines}",
                      f"heirloom rollback PARENT --line {facts.tip_of[0]} makes another version active"))  # fmt: skip
    if facts.jobs:
        jobs = ", ".join(str(job) for job in facts.jobs)
        found.append((f"{facts.name} is the base of unfinished job {jobs}", f"heirloom queue cancel {facts.jobs[0]}"))
    if not facts.force:
        found.append((f"deleting {facts.name} needs --force", f"heirloom delete {facts.name} --force"))
    if facts.dependants and not facts.confirm_lineage:
        found.append((f"{', '.join(facts.dependants)} stands on {facts.name}",
                      f"heirloom delete {facts.name} --force --confirm-lineage"))  # fmt: skip
    return [reason for reason, _hint in found], [hint for _reason, hint in found]
