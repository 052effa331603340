"""One shape for every guard's answer: facts in, verdict with reasons out. A guard never acts.

Law 5: a guard that raises or lacks a figure is a refusal with a reason; `guarded` makes that so in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Check", "Verdict", "guarded", "verdict_of"]


@dataclass(frozen=True)
class Check:
    """One question and its answer. `ok` None: not applicable (told, but never a refusal)."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""
    environment: bool = False
    """The machine is at fault: hold and retry instead of asking a person."""
    warning: bool = False

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """Every check of one guard. Passed when none is a plain no."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok is not False for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.ok is False]

    @property
    def reason(self) -> str:
        """Every failure in one line, with what to do."""
        return "; ".join(f"{check.name}: {check.detail}" + (f" ({check.remedy})" if check.remedy else "")
                         for check in self.failures)  # fmt: skip

    @property
    def environment_only(self) -> bool:
        """All that fails is the machine's fault: the work is held and retried by itself."""
        return bool(self.failures) and all(check.environment for check in self.failures)

    def as_list(self) -> list[dict[str, object]]:
        return [check.as_dict() for check in self.checks]


def guarded(name: str, question: Callable[[], Check]) -> Check:
    """Ask one question; an exception in it is a refusal that names the exception (law 5)."""
    try:
        return question()
    except Exception as error:  # noqa: BLE001 - fail closed: whatever went wrong, the answer is no
        return Check(name, False, f"the check itself failed: {type(error).__name__}: {error}",
                     "run `heirloom doctor`; report this if it stays")  # fmt: skip


def verdict_of(questions: Sequence[tuple[str, Callable[[], Check]]]) -> Verdict:
    """Ask every question, none spared by an earlier no."""
    return Verdict(tuple(guarded(name, question) for name, question in questions))
