"""Preflight: is it safe and sensible to train this now? The seven checks of seed 002 and those of DESIGN 6.

Pure: the caller gathers `Facts` (`daemon/planning.py`); a figure it could not get is None and counts as a refusal.
Every refusal says what to do. Nothing here looks at a disk or starts anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from guard.checks.verdict import Check, Verdict, verdict_of

__all__ = ["DataFact", "Facts", "preflight"]

GB = 1e9


@dataclass(frozen=True)
class DataFact:
    """What was found of one data file: `found_sha256` is None when it is missing."""

    name: str
    sha256: str
    found_sha256: str | None


@dataclass(frozen=True)
class Facts:
    """Everything preflight judges from."""

    data: Sequence[DataFact]
    base: str
    base_present: bool | None
    base_intact: bool | None
    base_is_intended: bool | None
    base_problem: str = ""
    base_below: str = ""
    """The version an adapter stands on, where that one is what is missing or damaged."""
    examples_new: int | None = None
    """Trainable examples that this ancestry has not learnt; an estimate until the data is prepared."""
    examples_too_long: int = 0
    examples_known: int = 0
    """New examples that do not fit into the base's context even with their context text cut away."""
    examples_untouchable: int = 0
    """Examples that are in a registered evaluation set: never trained."""
    repeat_allowed: bool = False
    free_bytes: int | None = None
    needed_bytes: int | None = None
    vault_free_bytes: int | None = None
    """None: backups are switched off, or nobody can tell."""
    vault_needed_bytes: int | None = None
    reserve_bytes: int | None = None
    memory_needed: int | None = None
    """Resident bytes of the training child at its peak, estimated."""
    memory_allowed: int | None = None
    """What the machine, or the setting, ever lets it have."""
    memory_free: int | None = None
    """Available at this moment, caches that the kernel gives back counted."""
    device: str = "cpu"
    device_free: bool | None = None
    device_problem: str = ""
    unfinished_jobs: Sequence[str] | None = None
    inconsistencies: Sequence[str] | None = None
    tokenizer_base: str | None = None
    tokenizer_data: str | None = None
    """None: the data is not prepared yet and will be prepared with the base's tokenizer."""
    template_base: str | None = None
    template_data: str | None = None
    mask_ratio: float | None = None
    mask_needed: bool = False
    output_problem: str = ""
    inputs: Sequence[str] = ()
    """Versions that are loaded besides the base: an adapter's base, a reference."""
    inputs_problem: str = ""
    inputs_hint: str = ""
    extra: dict[str, str] = field(default_factory=dict)


def preflight(facts: Facts) -> Verdict:
    """Every check, each with its reason and remedy."""
    asked = [("Other inputs", lambda: _inputs(facts))] if facts.inputs or facts.inputs_problem else []
    return verdict_of(
        [
            ("Data verified", lambda: _data(facts)),
            ("Base model exists", lambda: _base(facts)),
            ("No duplicates", lambda: _something_new(facts)),
            ("Examples fit", lambda: _fit(facts)),
            ("Disk space", lambda: _disk(facts)),
            ("Device available", lambda: _device(facts)),
            ("Previous training finished", lambda: _previous(facts)),
            ("Registry consistent", lambda: _consistent(facts)),
            ("Tokenizer matches", lambda: _same("Tokenizer matches", facts.tokenizer_base, facts.tokenizer_data)),
            ("Template matches", lambda: _same("Template matches", facts.template_base, facts.template_data)),
            ("Mask trains answers", lambda: _mask(facts)),
            ("Output name free", lambda: _output(facts)),
            ("Memory", lambda: _memory(facts)),
            *asked,
        ]
    )


def _data(facts: Facts) -> Check:
    name = "Data verified"
    if not facts.data:
        return Check(name, False, "no data file was named", "name one: --data FILE")
    missing = [item.name for item in facts.data if item.found_sha256 is None]
    if missing:
        return Check(name, False, f"missing: {', '.join(missing)}", "heirloom restore, or drop the file again")
    changed = [item.name for item in facts.data if item.found_sha256 != item.sha256]
    if changed:
        return Check(name, False, f"the stored bytes changed: {', '.join(changed)}",
                     "heirloom verify --all tells more; drop a good copy again")  # fmt: skip
    return Check(name, True, f"{len(facts.data)} file{'s' if len(facts.data) > 1 else ''} match their hashes")


def _base(facts: Facts) -> Check:
    name = "Base model exists"
    if facts.base_below and not (facts.base_present and facts.base_intact):
        return Check(name, False, f"{facts.base} cannot be loaded: {facts.base_problem}", f"heirloom restore {facts.base_below}")
    if not facts.base_present:
        return Check(name, False, f"{facts.base} is not in models/", f"heirloom restore {facts.base}")
    if not facts.base_intact:
        return Check(name, False, f"{facts.base} is damaged: {facts.base_problem or 'it could not be checked'}",
                     f"heirloom verify {facts.base}, then heirloom restore {facts.base} --from backup")  # fmt: skip
    if not facts.base_is_intended:
        return Check(name, False, f"{facts.base} is not the version that was meant: {facts.base_problem}",
                     "plan again on the version you mean: heirloom plan --base VERSION")  # fmt: skip
    return Check(name, True, f"{facts.base} is intact")


def _something_new(facts: Facts) -> Check:
    name = "No duplicates"
    if facts.examples_new is None:
        return Check(name, False, "it is not known what is new in this data", "heirloom doctor")
    if facts.examples_new == 0 and facts.examples_too_long and facts.examples_known:
        return Check(name, False, f"all that {facts.base} can read of it was learnt already; the other"
                     f" {facts.examples_too_long:,} examples are too long for it",
                     "shorten them, or plan on a base with a larger block_size")  # fmt: skip
    if facts.examples_new == 0 and facts.examples_too_long:
        return Check(name, True, f"{facts.examples_too_long:,} examples are new to this model")
    if facts.examples_new == 0 and facts.examples_untouchable:
        return Check(name, False, f"{facts.examples_untouchable:,} examples are in an evaluation set and never trained,"
                     " and nothing else is new", "nothing needs to be done; heirloom why FILE tells which set")  # fmt: skip
    if facts.examples_new == 0:
        return Check(name, False, "this model and its ancestors have learnt all of it already",
                     "nothing needs to be done; --allow-repeat trains it again")  # fmt: skip
    word = "examples (repeats allowed)" if facts.repeat_allowed else "examples are new to this model"
    kept_out = f"; {facts.examples_untouchable:,} are in an evaluation set and kept out" if facts.examples_untouchable else ""
    return Check(name, True, f"{facts.examples_new:,} {word}{kept_out}")


def _fit(facts: Facts) -> Check:
    name = "Examples fit"
    if facts.examples_new == 0 and facts.examples_too_long and not facts.examples_known:
        return Check(name, False, f"all {facts.examples_too_long:,} new examples are longer than {facts.base} can read",
                     "shorten them, or plan on a base with a larger block_size")  # fmt: skip
    if facts.examples_too_long:
        return Check(name, True, f"{facts.examples_too_long:,} are too long and will be skipped", warning=True)
    return Check(name, True, "none is known to be too long")


_ASK_BASE = "how much is needed is not known before the base is sound"


def _base_refuses(facts: Facts) -> bool:
    """The base's own check says no already: what could not be asked of it is no second fault, and not the disk's."""
    return not (facts.base_present and facts.base_intact)


def _disk(facts: Facts) -> Check:
    name = "Disk space"
    if facts.needed_bytes is None and _base_refuses(facts):
        return Check(name, None, _ASK_BASE)
    if facts.free_bytes is None or facts.needed_bytes is None or facts.reserve_bytes is None:
        return Check(name, False, "the free space is not known", "is the disk mounted?", environment=True)
    room = facts.free_bytes - facts.reserve_bytes - facts.needed_bytes
    text = (f"{facts.free_bytes / GB:,.1f} GB free; this job needs {facts.needed_bytes / GB:,.2f} GB"
            f" and {facts.reserve_bytes / GB:,.1f} GB stay reserved")  # fmt: skip
    if room < 0:
        return Check(name, False, text, f"free {-room / GB:,.1f} GB, or lower disk.reserve_gb", environment=True)
    if problem := _vault(facts):
        return Check(name, True, f"{text}; {problem}", warning=True)
    return Check(name, True, text)


def _vault(facts: Facts) -> str:
    """Never a refusal: a full vault costs no model. The version is born, and its backup waits for room."""
    free, needed = facts.vault_free_bytes, facts.vault_needed_bytes
    if free is None or needed is None or free > needed:
        return ""
    return (f"the vault has {free / GB:,.2f} GB free and the backup may take {needed / GB:,.2f} GB: the version is born all the "
            "same, its backup is held and tried again")  # fmt: skip


def _memory(facts: Facts) -> Check:
    name = "Memory"
    needed, allowed, free = facts.memory_needed, facts.memory_allowed, facts.memory_free
    if needed is None and _base_refuses(facts):
        return Check(name, None, _ASK_BASE)
    if needed is None or allowed is None or free is None:
        return Check(name, False, "how much memory there is and is needed is not known", "heirloom doctor", environment=True)
    if needed > allowed:
        text = f"this job needs about {needed / GB:,.2f} GB; {allowed / GB:,.2f} GB may be used here"
        return Check(name, False, text, "raise training.memory_mb where there is more, or take a smaller base", environment=True)
    if needed > free:
        text = f"this job needs about {needed / GB:,.2f} GB; {free / GB:,.2f} GB are free now"
        return Check(name, False, text, "ps aux --sort=-rss | head tells what uses it; the job waits for room", environment=True)
    return Check(name, True, f"about {needed / GB:,.2f} GB of {allowed / GB:,.1f} GB")


def _device(facts: Facts) -> Check:
    name = "Device available"
    if facts.device_free is None:
        return Check(name, False, f"{facts.device}: {facts.device_problem or 'its state is not known'}",
                     "heirloom doctor", environment=True)  # fmt: skip
    if not facts.device_free:
        return Check(name, False, f"{facts.device} is busy: {facts.device_problem}",
                     "the job waits until it is free", environment=True)  # fmt: skip
    return Check(name, True, facts.device)


def _previous(facts: Facts) -> Check:
    name = "Previous training finished"
    if facts.unfinished_jobs is None:
        return Check(name, False, "the queue could not be read", "heirloom doctor")
    if facts.unfinished_jobs:
        return Check(name, False, f"unfinished on this line: {', '.join(facts.unfinished_jobs)}",
                     "wait for it, or heirloom queue cancel ID", environment=True)  # fmt: skip
    return Check(name, True, "nothing is running on this line")


def _consistent(facts: Facts) -> Check:
    name = "Registry consistent"
    if facts.inconsistencies is None:
        return Check(name, False, "ledger, views and disk were not compared", "heirloom doctor")
    if facts.inconsistencies:
        return Check(name, False, "; ".join(list(facts.inconsistencies)[:3]), "heirloom verify --all; heirloom doctor")
    return Check(name, True, "ledger, views and disk agree")


def _same(name: str, base: str | None, data: str | None) -> Check:
    if base is None:
        return Check(name, False, "the base does not say which one it uses", "heirloom verify BASE")
    if data is None:
        return Check(name, True, "the data will be prepared with the base's own")
    if base != data:
        return Check(name, False, f"the base uses {base[:12]}, the data was prepared with {data[:12]}",
                     "prepare the data again with the base's tokenization")  # fmt: skip
    return Check(name, True, f"both use {base[:12]}")


def _mask(facts: Facts) -> Check:
    name = "Mask trains answers"
    if not facts.mask_needed:
        return Check(name, None, "plain text: every token is trained")
    if facts.mask_ratio is None:
        return Check(name, True, "will be checked when the data is prepared")
    if not facts.mask_ratio > 0.0:  # also when it is not a number
        return Check(name, False, "no token of this data would be trained", "the rows need assistant answers")
    if facts.mask_ratio >= 1.0:
        return Check(name, False, "every token would be trained, questions too", "prepare the data again as chat")
    if facts.mask_ratio < 0.10:
        return Check(name, True, f"Mask ratio too low ({facts.mask_ratio:.1%}): training will be slow", warning=True)
    return Check(name, True, f"{facts.mask_ratio:.1%} of the tokens are answers")


def _inputs(facts: Facts) -> Check:
    if facts.inputs_problem:
        return Check("Other inputs", False, facts.inputs_problem, facts.inputs_hint)
    return Check("Other inputs", True, f"{', '.join(facts.inputs)} intact")


def _output(facts: Facts) -> Check:
    name = "Output name free"
    if facts.output_problem:
        return Check(name, False, facts.output_problem, "leave --output's number away, or take a higher one")
    return Check(name, True, "the version number was never used")
