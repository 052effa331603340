"""The laws of the house: which way imports run, who writes files, who may run torch, and that a clock is passed in."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from guard.failpoints import POINTS

ROOT = Path(__file__).parent.parent
PACKAGES = ("guard", "trainer", "daemon")
MAY_IMPORT = {"guard": {"guard"}, "trainer": {"guard", "trainer"}, "daemon": {"guard", "trainer", "daemon"}}
HEAVY = {"torch", "watchdog", "apscheduler", "transformers", "sklearn"}


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_from_daemon_to_trainer_to_guard_and_never_back(package: str) -> None:
    for path in sources(package):
        wrong = (imports_of(path) & set(PACKAGES)) - MAY_IMPORT[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: imports run daemon -> trainer -> guard only"


def test_the_guard_imports_no_torch_and_no_machinery() -> None:
    for path in sources("guard"):
        assert not imports_of(path) & HEAVY, path


@pytest.mark.parametrize(
    "module", ["guard.store.recovery", "trainer", "trainer.prepare_job", "daemon.service", "daemon.operations", "daemon.cli.main"]
)
def test_no_torch_in_the_daemons_process(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_finished_files_are_made_in_one_place_only() -> None:
    """Writing calls outside guard/durable.py are allowed where nothing finished is made, and each one is listed here."""
    allowed = {
        "daemon/demo/stage.py",  # a stranger's hand: drops files into the inbox, keeps the daemon's log
        "daemon/children.py",  # a child's log
        "daemon/remake.py",  # a child's log
        "trainer/run_logs.py",  # metrics.jsonl grows in a staging folder
        "trainer/server.py",  # a child's log
    }
    writes = r"""(?<!durable)\.write_(?:text|bytes)\(|open\([^)]*["'][wax]b?\+?["']|os\.rename\(|os\.replace\(|shutil\.move"""
    pattern = re.compile(writes)
    writers = {str(path.relative_to(ROOT)) for path in sources(*PACKAGES)
               if path.name != "durable.py" and pattern.search(path.read_text("utf-8"))}  # fmt: skip
    assert writers <= allowed, f"only guard/durable.py makes finished files: {sorted(writers - allowed)}"


def test_time_is_passed_in_where_decisions_are_made() -> None:
    daemon = [ROOT / "daemon" / f"{name}.py" for name in ("settle", "intake", "verdicts", "runner", "freezing", "engine")]
    for path in [*sources("guard"), *daemon]:
        if path.name == "clock.py":
            continue
        text = path.read_text("utf-8")
        assert not re.search(r"time\.(time|monotonic|sleep)\(|datetime\.now\(", text), f"{path} asks the clock itself"


def test_every_fail_point_is_declared_and_every_declared_one_is_there() -> None:
    called = re.compile(r'(?<![\w.])point\("([a-z_]+\.[a-z_]+)"\)')
    texts = {path: path.read_text("utf-8") for path in sources(*PACKAGES) if path.name != "failpoints.py"}
    used = {name for text in texts.values() for name in called.findall(text)}
    passed_on = {name for name in POINTS if any(f'"{name}"' in text for text in texts.values())}
    assert used <= set(POINTS)
    assert set(POINTS) == used | passed_on


def test_every_file_opens_with_what_it_is() -> None:
    for path in sources(*PACKAGES):
        assert (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").strip(), f"{path} has no opening words"


def test_packages_are_listed_and_tests_lie_flat() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"])
    found = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in sources(*PACKAGES) if path.name == "__init__.py"}
    assert listed == found
    assert not [path for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_no_swallowed_errors() -> None:
    for path in sources(*PACKAGES):
        assert not re.search(r"except[^\n]*:\s*\n?\s*pass\b", path.read_text("utf-8")), path


def test_the_units_are_sound_in_the_eyes_of_systemd(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed here")
    for name, flags in (("heirloom.service", ["--man=no"]), ("heirloom-user.service", ["--man=no", "--user"])):
        # The program it starts need not be installed where the tests run.
        text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", (ROOT / "systemd" / name).read_text("utf-8"))
        (tmp_path / name).write_text(re.sub(r"(?m)^(User|Group)=.*\n", "", text), "utf-8")
        told = subprocess.run([tool, *flags, "verify", str(tmp_path / name)], capture_output=True, text=True, check=False)
        complaints = [line for line in (told.stdout + told.stderr).splitlines() if name in line]
        assert not complaints, complaints
