"""`heirloom status`: the whole home on one screen, with and without a running daemon.

The facts come from `daemon/report.py`; here they become words. Nothing is judged or changed. This file imports no
typer: `heirloom status` has to answer at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from daemon.cli.caller import Caller
from daemon.cli.output import (
    Console,
    bar,
    human_bytes,
    human_count,
    human_duration,
    human_tokens,
    plural,
    short_duration,
    visible,
)
from guard.errors import DaemonNotRunning

__all__ = ["progress_line", "render_status", "show"]

_LABEL_WIDTH = 10
_WORDS = {
    "stopped": "stopped: nothing runs, nothing is lost (heirloom run starts it)",
    "idle": "idle: waiting for files in inbox/",
    "paused": "paused: heirloom queue resume goes on",
    "held": "held: waits for the machine, then goes on by itself",
}
_STYLES = {"stopped": "yellow", "paused": "yellow", "held": "yellow"}


def show(caller: Caller, *, watch: bool, check: bool) -> int:
    """Show the status, again and again with `watch`; returns the exit code (10 with `check` and no daemon)."""
    from daemon.report import daemon_running
    from daemon.report import status as read_status

    home = caller.home()
    if watch and not caller.console.json:
        _watch(caller.console, lambda: render_status(read_status(home), str(home.root), caller.console.style))
    report = read_status(home)
    caller.console.emit(report)
    caller.console.say(*render_status(report, str(home.root), caller.console.style))
    return DaemonNotRunning.exit_code if check and not daemon_running(home) else 0


def _watch(console: Console, render: Callable[[], list[str]]) -> NoReturn:
    """Draw over the last screen on a terminal; one screen after the other elsewhere."""
    clear = "\x1b[H\x1b[2J" if console.out.isatty() else ""
    while True:
        # One write, or the screen would flicker.
        print(clear + "\n".join(render()), file=console.out, flush=True)
        time.sleep(1.0)


def _plain(text: str, *_names: str) -> str:
    return text


def render_status(report: Mapping[str, Any], root: str, style: Callable[..., str] = _plain) -> list[str]:
    """The screen for a report in the shape of `status --json`."""
    state = str(report["state"])
    active = ", ".join(f"{visible(name)} ({visible(line)})" for line, name in report["active"].items())
    rows = [
        ("State", style(_state_words(report), _STYLES.get(state, "green"))),
        ("Active", active or "none"),
        ("Index", visible(report["index"] or "none: drop documents to get one")),
        *_training_rows(report.get("training")),
        ("Queue", _counts(report["queue"])),
        ("Inbox", _counts(report["inbox"])),
        ("Tokens", _tokens(report["tokens"])),
        ("Disk", _disk(report["disk"])),
    ]
    lines = [style("Heirloom", "bold") + f"  {visible(root)}", ""]
    lines += [f"  {style(label.ljust(_LABEL_WIDTH), 'dim')} {text}" for label, text in rows]
    return lines + _alerts(report.get("alerts") or [], style)


def _state_words(report: Mapping[str, Any]) -> str:
    state = str(report["state"])
    paused = "; the queue is paused: heirloom queue resume" if state == "stopped" and report.get("paused") else ""
    return _WORDS.get(state, visible(state)) + paused


def _counts(counts: Mapping[str, Any]) -> str:
    """What there is; zeros say nothing."""
    told = [(number, visible(word).removesuffix("s") if number == 1 else visible(word))
            for word, number in counts.items() if number]  # fmt: skip
    return ", ".join(f"{human_count(number)} {word}" for number, word in told) or "empty"


def _training_rows(training: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not training:
        return [("Training", "nothing now")]
    title = f"job {training['job']}"
    if training.get("output"):
        title = f"{visible(training['output'])} from {visible(training.get('base'))} ({title})"
    return [("Training", title), ("", progress_line(training))]


def progress_line(training: Mapping[str, Any]) -> str:
    """`[████░░░░] 52 %  step 1,300/2,500  loss 0.153  12.4K tokens/s  1h 23m left`."""
    step, steps = training.get("step") or 0, training.get("steps") or 0
    phase = visible(training.get("phase") or "training")
    if not steps or phase != "training":
        return phase if phase != "training" else "getting ready"
    parts = [f"{bar(step / steps)} {100 * step // steps} %", f"step {human_count(step)}/{human_count(steps)}"]
    if training.get("loss") is not None:
        parts.append(f"loss {training['loss']:.4g}")
    if training.get("tokens_per_second"):
        parts.append(f"{human_tokens(training['tokens_per_second'])} tokens/s")
    if training.get("eta_seconds") is not None:
        parts.append(f"{short_duration(training['eta_seconds'])} left")
    return "  ".join(parts)


def _tokens(tokens: Mapping[str, Any]) -> str:
    trained, goal = tokens["trained"], tokens.get("goal") or 0
    text = f"{human_tokens(trained)} trained"
    if goal:
        text += f" of {human_tokens(goal)} ({_percent(trained / goal)})"
    if tokens.get("per_second"):
        text += f", {human_tokens(tokens['per_second'])}/s"
    eta = tokens.get("eta")
    if isinstance(eta, int | float):
        text += f", {human_duration(eta)} to go"
    return text + (f", {visible(eta)}" if isinstance(eta, str) and eta else "")


def _percent(share: float) -> str:
    if 0 < share < 0.0001:
        return "under 0.01 %"
    return f"{100 * share:.3g} %"


def _disk(disk: Mapping[str, Any]) -> str:
    text = f"{human_bytes(disk['free_bytes'])} free"
    forks = disk.get("forks_left")
    if forks is None:
        return text
    full_on = f", full on {visible(disk['full_on'])} at this rate" if disk.get("full_on") else ""
    return f"{text}, room for {plural(forks, 'more version')}{full_on}"


def _alerts(alerts: list[Any], style: Callable[..., str]) -> list[str]:
    """Each alert with what to do; an alert is a text or a record of `what` and `remedy`."""
    lines: list[str] = []
    for alert in alerts:
        record = alert if isinstance(alert, Mapping) else {"what": alert}
        lines += ["", style(f"  ⚠️  {visible(record.get('what'))}", "yellow")]
        if record.get("remedy"):
            lines.append(f"      try: {visible(record['remedy'])}")
    return lines
