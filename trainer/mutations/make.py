"""Repositories and their `mutants.out` into one file of mutation rows; `cargo mutants` is run where it has not been.

Running it builds the repository and runs its tests, and so executes its code: only for repositories one trusts. Reading a
`mutants.out` executes nothing. Rows stand in the order of the repositories, files and lines.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from guard.durable import make_dir, open_new
from guard.errors import CheckFailed, DataFault, EnvironmentFault, NotFound, UsageError
from trainer.making import check_writable
from trainer.mutations.outcome import REASONS, mutant_of, row_of

__all__ = ["OUTPUT_FILE", "make_mutations"]

OUTPUT_FILE = "mutations.jsonl"
_FINISHED = (0, 2, 3)  # all caught; some missed; some did not end
_ORIGIN = re.compile(r"url\s*=\s*\S*?([^/:\s]+/[^/\s]+?)(?:\.git)?\s*$", re.MULTILINE)
_MOST_BYTES = 16 << 20


@dataclass
class _Tally:
    rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def leave(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def make_mutations(repos: Sequence[Path], outs: Sequence[Path], output: Path, *, most: int | None = None, jobs: int = 1,
                   tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:  # fmt: skip
    """Write rows {buggy_code, error_message, fixed_code, repo, file}, at most `most` of a repository.

    `outs`: folders that `cargo mutants` left; one that lies in a repository belongs to it, else to the repository of the
    same place in `repos`. `repos` without one are mutated now, `jobs` at a time. `output`: a new `.jsonl` file, or a
    folder. The report: `output rows repos[] (repo rows mutants) left_out{reason: count}`. Raises NotFound, UsageError,
    EnvironmentFault where cargo-mutants is missing, DataFault when there is no row.
    """
    target = output if output.suffix == ".jsonl" else output / OUTPUT_FILE
    if target.exists():
        raise UsageError(f"{target} exists already", subject=str(target), hint="name another --output")
    pairs = _pairs(repos, outs)
    check_writable(target.parent)
    make_dir(target.parent)
    tally, told = _Tally(), []
    with tempfile.TemporaryDirectory(prefix=".mutants-", dir=target.parent) as scratch, open_new(target) as handle:
        for number, (repo, out) in enumerate(pairs):
            if out is None:
                tell(f"cargo mutants in {repo}")
                out = _run(repo, Path(scratch) / str(number), jobs)
            name, outcomes = _name_of(repo), _outcomes(out)
            rows = _rows(outcomes, out, repo, name, tally, most)
            for row in rows:
                handle.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            tally.rows += len(rows)
            told.append({"repo": name, "rows": len(rows), "mutants": len(outcomes)})
        if not tally.rows:
            raise DataFault("no mutant can be used", hint=", ".join(tally.left_out) or "there is none")
    return {"output": str(target), "rows": tally.rows, "repos": told, "left_out": dict(sorted(tally.left_out.items()))}


def _pairs(repos: Sequence[Path], outs: Sequence[Path]) -> list[tuple[Path, Path | None]]:
    """Each repository with its `mutants.out`, if there is one."""
    for path in [*repos, *outs]:
        if not path.is_dir():
            raise NotFound(f"there is no folder {path}", subject=str(path), hint="check the path")
    if repos and outs and len(repos) != len(outs):
        raise UsageError(f"{len(repos)} repositories and {len(outs)} folders of outcomes",
                         hint="one --from for each --repo, or none")  # fmt: skip
    if outs:
        own = [out / "mutants.out" if (out / "mutants.out").is_dir() else out for out in outs]
        return [(repos[place] if repos else out.parent, out) for place, out in enumerate(own)]
    if not repos:
        raise UsageError("no repository", hint="--repo DIR, or --from DIR/mutants.out")
    return [(repo, repo / "mutants.out" if (repo / "mutants.out" / "outcomes.json").is_file() else None) for repo in repos]


def _run(repo: Path, out: Path, jobs: int) -> Path:
    """Mutate a repository; returns the `mutants.out` that came of it. Raises EnvironmentFault, CheckFailed."""
    if not shutil.which("cargo-mutants"):
        hint = "cargo install --locked cargo-mutants; or --from DIR/mutants.out, made on another machine"
        raise EnvironmentFault("cargo-mutants is not installed", subject=str(repo), hint=hint)
    out.mkdir()
    line = ["cargo-mutants", "mutants", "--dir", str(repo), "--output", str(out), "--jobs", str(jobs), "--no-shuffle"]
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode not in _FINISHED:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
        raise CheckFailed(f"cargo mutants ended with {done.returncode} in {repo}: {said[-1][:300]}", subject=str(repo),
                          hint=f"cd {repo} && cargo test")  # fmt: skip
    return out / "mutants.out"


def _outcomes(out: Path) -> list[Mapping[str, Any]]:
    """The outcomes of mutants, by file, line and name. Raises NotFound, DataFault."""
    path = out / "outcomes.json"
    if not path.is_file():
        raise NotFound(f"there is no outcomes.json in {out}", subject=str(out), hint="name the mutants.out folder after --from")
    try:
        found = orjson.loads(path.read_bytes())["outcomes"]
        return sorted((item for item in found if mutant_of(item)), key=_place)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataFault(f"{path} is not what cargo mutants writes", subject=str(path), cause=error) from error


def _place(outcome: Mapping[str, Any]) -> tuple[str, int, int, str]:
    mutant = mutant_of(outcome) or {}
    start = (mutant.get("span") or {}).get("start") or {}
    return str(mutant.get("file")), int(start.get("line") or 0), int(start.get("column") or 0), str(mutant.get("name"))


def _rows(outcomes: Sequence[Mapping[str, Any]], out: Path, repo: Path, name: str, tally: _Tally,
          most: int | None) -> list[dict[str, str]]:  # fmt: skip
    """The usable rows of one repository, in order; of more than `most` those whose hash comes first, so that all files give."""
    found = [row for outcome in outcomes if (row := _row(outcome, out, repo, name, tally)) is not None]
    if most is not None and len(found) > most:
        keys = sorted(hashlib.sha256(orjson.dumps(row)).digest() for row in found)[:most]
        found = [row for row in found if hashlib.sha256(orjson.dumps(row)).digest() in set(keys)][:most]
    return found


def _row(outcome: Mapping[str, Any], out: Path, repo: Path, name: str, tally: _Tally) -> dict[str, str] | None:
    mutant, summary = mutant_of(outcome) or {}, str(outcome.get("summary"))
    if summary != "CaughtMutant":
        tally.leave(REASONS.get(summary, f"its outcome is {summary[:40]}"))
        return None
    log = _text(out, outcome.get("log_path")) or ""
    diff = _text(out, outcome.get("diff_path")) or _diff_in(log)
    found = row_of(mutant, diff, log, _text(repo, mutant["file"]), name)
    if isinstance(found, str):
        tally.leave(found)
        return None
    return found


def _text(folder: Path, name: Any) -> str | None:
    """A text below a folder; None when it is not there. What a file names outside of it is not read."""
    if not isinstance(name, str):
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    return path.read_text("utf-8", "replace").replace("\r\n", "\n")


def _diff_in(log: str) -> str:
    """The difference as older releases tell it: in the log only."""
    return log.partition("*** mutation diff:\n")[2].partition("\n\n***")[0]


def _name_of(repo: Path) -> str:
    """`owner/name` of the repository's origin, else the folder's name."""
    return next(_origins(repo), repo.resolve().name)


def _origins(repo: Path) -> Iterator[str]:
    config = repo / ".git" / "config"
    if config.is_file():
        yield from (found[1] for found in _ORIGIN.finditer(config.read_text("utf-8", "replace")))
