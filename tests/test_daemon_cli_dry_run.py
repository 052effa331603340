"""`--dry-run`: every changing command says what it would do, with the exit code of the real thing, and changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hf_help import trained_folder
from homes import add_job_row, clone, keeper_of, make_home, small_family
from toy import Toy, chat_of, text_of

from daemon.cli import main as cli
from daemon.cli.backup import backup_plan_lines
from daemon.operations import perform
from guard.durable import remove_tree
from guard.store.vault import plan_backup, run_backup
from trainer.prepare_folder import prepare_folder
from trainer.retrieval.chunk import chunk_text, estimate_chunks

Run = Callable[[str], tuple[int, str, str]]
CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("family") / "home"
    keeper = small_family(root)
    for state in ("queued", "queued", "failed", "quarantined"):
        add_job_row(keeper, state)
    keeper.ledger.close()
    yield root
    remove_tree(root)


@pytest.fixture
def home(family: Path, tmp_path: Path) -> Iterator[Path]:
    clone(family, tmp_path / "home").ledger.close()
    yield tmp_path / "home"
    remove_tree(tmp_path / "home")


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("HEIRLOOM_HOME", str(home))
    return _runner(capsys)


def _runner(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(line: str) -> tuple[int, str, str]:
        code = cli.main(line.split())
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def _state(home: Path) -> tuple[list[str], int, list[tuple[Any, ...]]]:
    """Everything a dry run could change: files (not the lock's notes), events, jobs."""
    files = sorted(str(path.relative_to(home)) for path in home.rglob("*") if ".heirloom" not in path.parts)
    keeper = keeper_of(home)
    jobs = [tuple(row) for row in keeper.ledger.rows("SELECT id, state, position FROM jobs")]
    events = keeper.ledger.sequence()
    keeper.ledger.close()
    return [name for name in files if not name.endswith(("-wal", "-shm"))], events, jobs


@pytest.mark.parametrize(
    "line",
    ["queue pause", "queue resume", "queue cancel 1", "queue retry 3", "queue retry 4", "queue move 2 --to 1", "backup run",
     "index build"],
)  # fmt: skip
def test_nothing_is_changed(run: Run, home: Path, line: str) -> None:
    before = _state(home)
    code, out, _err = run(f"{line} --dry-run --yes --json")
    assert code == 0 and json.loads(out)["dry_run"] is True
    code, out, _err = run(f"{line} --dry-run")
    assert code == 0 and "ould" in out
    assert _state(home) == before


def test_what_is_refused_is_refused_in_a_dry_run_too(run: Run) -> None:
    assert run("queue cancel 99 --dry-run")[0] == 4
    assert run("queue retry 1 --dry-run")[0] == 3
    assert run("queue move 3 --to 1 --dry-run")[0] == 3
    assert run("run --dry-run")[0] == 2


def test_a_place_beyond_the_end_is_the_last(run: Run) -> None:
    assert json.loads(run("queue move 1 --to 9 --dry-run --json")[1])["place"] == 2
    assert run("queue move 1 --to 9")[1] == "Job 1 is number 2 in the queue.\n"
    assert [job["id"] for job in json.loads(run("queue --json")[1])["jobs"] if job["state"] == "queued"] == [2, 1]


# --- register ---------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    """Good, good with an unusable row, bad, empty, of no kind, and a document."""
    rows = chat_of(40).splitlines()
    rows[7] = json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]})
    made = {"good.jsonl": chat_of(30, 2), "partly.jsonl": "\n".join(rows) + "\n", "bad.jsonl": "no JSON\n", "empty.jsonl": "",
            "table.csv": "a,b\n1,2\n", "notes.md": "# Notes\n\nOne model.\n"}  # fmt: skip
    for name, content in made.items():
        (folder / name).write_text(content)
    return [folder / name for name in made]


def test_register_judges_like_the_real_thing(run: Run, home: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in _files(tmp_path)]
    before = _state(home)
    code, out, _err = run(f"register {' '.join(paths)} --dry-run --json")
    assert _state(home) == before
    told = json.loads(out)["files"]
    real_code, out, _err = run(f"register {' '.join(paths)} --json")
    real = json.loads(out)["files"]
    assert code == real_code == 3
    keys = ("name", "fingerprint", "kind", "examples", "tokens", "bad_rows", "bad_row_list", "unusable_rows", "duplicates",
            "status", "verdict", "reason")  # fmt: skip
    for one, other in zip(told, real, strict=True):
        assert {key: one[key] for key in keys} == {key: other[key] for key in keys}
    assert [item["verdict"] for item in told] == ["registered", "registered", "rejected", "rejected", "rejected", "admitted"]
    assert told[1]["unusable_rows"] == 1 and told[2]["bad_rows"] == 1 and all(item["dry_run"] for item in told)


def test_register_tells_what_is_known(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy, run, text = Toy(scratch / "home").make_base(), _runner(capsys), text_of(2000)
    toy.drop("pretrain/learnt.txt", text)
    toy.settle().die()
    (scratch / "copy.txt").write_text(text)
    code, out, _err = run(f"--home {scratch / 'home'} register {scratch / 'copy.txt'} --kind pretrain --dry-run")
    assert code == 7 and "Already known: copy.txt" in out and "trained in v002_learnt" in out


def test_a_link_is_registered_as_what_it_points_to(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text(chat_of(30))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert json.loads(run(f"register {tmp_path / 'link.jsonl'} --dry-run --json")[1])["name"] == "real.jsonl"


def test_a_link_says_what_a_file_is_whose_own_name_does_not(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy, run = Toy(scratch / "home"), _runner(capsys)
    (scratch / "5f3a09c1").write_text(chat_of(30))
    (scratch / "train.jsonl").symlink_to(scratch / "5f3a09c1")
    asked = f"--home {scratch / 'home'} register {scratch / 'train.jsonl'} --dry-run --json"
    assert json.loads(run(asked)[1])["name"] == "train.jsonl"
    perform(toy.engine, "register", {"paths": [str(scratch / "train.jsonl")]})
    toy.settle()
    assert [item[:2] for item in toy.drops()] == [("train.jsonl", "registered")]
    assert (scratch / "train.jsonl").is_symlink() and (scratch / "5f3a09c1").read_text() == chat_of(30)
    toy.die()


def test_registering_an_empty_file_comes_to_an_end(scratch: Path) -> None:
    toy = Toy(scratch / "home")
    (scratch / "empty.jsonl").write_text("")
    perform(toy.engine, "register", {"paths": [str(scratch / "empty.jsonl")]})
    toy.settle()
    assert toy.drops() == [("empty.jsonl", "rejected", "the file is empty")] and (scratch / "empty.jsonl").exists()
    toy.die()


# --- backup -----------------------------------------------------------------------------------------------------------


def test_a_backup_copies_what_its_dry_run_named(home: Path) -> None:
    keeper = keeper_of(home)
    planned = plan_backup(keeper)
    assert not Path(planned["vault"]).exists() and len(planned["versions"]) == 4 and planned["bytes"] > 0
    names = [*planned["versions"], *(item["sha256"] for item in planned["originals"])]
    copied = run_backup(keeper)["copied"]
    assert set(names) == {name for name in copied if name.startswith("v0") or len(name) == 64}
    after = plan_backup(keeper)
    assert (after["versions"], after["originals"], after["bytes"]) == ([], [], 0)
    assert backup_plan_lines(after)[0].startswith("Nothing new to copy")
    assert backup_plan_lines(planned)[0].startswith("Would copy 4 versions and 3 originals")
    keeper.ledger.close()


# --- train, init, index ---------------------------------------------------------------------------------------------


@pytest.fixture
def trainable(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a base, a prepared dataset and a recipe beside it."""
    toy = Toy(scratch / "home").make_base()
    toy.die()
    (scratch / "text.txt").write_text(text_of(2000))
    prepare_folder("text", [scratch / "text.txt"], scratch / "ds", "char", 0.1, 1 << 20)
    prepare_folder("text", [scratch / "text.txt"], scratch / "gpt2_ds", "gpt2", 0.1, 1 << 20)
    recipe = "stage: pretrain\nmodel: {layers: 1, heads: 2, width: 16, block_size: 32}\n" \
             "training: {learning_rate: 1e-3, batch_sequences: 4}\n"  # fmt: skip
    (scratch / "recipe.yaml").write_text(recipe)
    monkeypatch.setenv("HEIRLOOM_HOME", str(scratch / "home"))
    monkeypatch.chdir(scratch)
    return scratch / "home"


def test_train_checks_all_and_admits_nothing(trainable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, before = _runner(capsys), _state(trainable)
    line = "train --model-name mini --config-file recipe.yaml --dry-run --dataset-dir"
    code, out, _err = run(f"{line} ds --init-from-model v001 --json")
    found = json.loads(out)
    assert (code, found["job"], found["base"], found["dry_run"]) == (0, None, "v001_baseline", True)
    assert found["estimate"]["steps"] > 0 and found["estimate"]["tokens"] > 1000 and found["examples"] > 0
    code, out, _err = run(f"{line} ds --max-iters 7")
    assert code == 0 and "from a new base" in out and "7 steps" in out
    code, _out, err = run(f"{line} gpt2_ds --init-from-model v001")
    assert code == 3 and "tokeni" in err
    assert run(f"{line} missing")[0] == 4 and run(f"{line} ds --init-from-model v099")[0] == 4
    assert run("train --model-name m --config-file no.yaml --dry-run --dataset-dir ds")[0] == 4
    assert _state(trainable) == before


def test_init_says_what_would_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, target = _runner(capsys), tmp_path / "new"
    found = json.loads(run(f"init {target} --recipe pretrain/micro --tokenization char --dry-run --json")[1])
    assert (found["version"], found["recipe"], found["seed"], found["dry_run"]) == ("v001_baseline", "pretrain/micro", 1337, True)
    assert found["parameters"] > 1000 and not target.exists()
    assert "Would make a home" in run(f"init {target} --recipe pretrain/micro --tokenization char --dry-run")[1]
    assert run(f"init {target} --recipe nonsense --dry-run")[0] == 4
    code, _out, err = run(f"init {target} --recipe sft/micro --dry-run")
    assert code == 2 and "--recipe pretrain/" in err and not target.exists()


def test_init_refuses_a_place_before_it_makes_anything(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _runner(capsys)
    for dry in ("", " --dry-run"):
        code, _out, err = run(f"init {home / 'inner'} --recipe pretrain/micro --tokenization char{dry}")
        assert code == 3 and "do not nest" in err and "making" not in err and not (home / "inner").exists()
    assert run(f"init {home} --recipe pretrain/micro --tokenization char --dry-run")[0] == 3


@pytest.mark.parametrize("dry", ["", " --dry-run"])
def test_init_refuses_a_tokenizer_before_it_makes_anything(
        tmp_path: Path, dry: str, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    run, target = _runner(capsys), tmp_path / "new"
    (tmp_path / "tok").mkdir()
    line = f"init {target} --recipe pretrain/micro --tokenization hf --tokenizer"
    assert run(f"{line} {tmp_path / 'nothing'}{dry}")[0] == 4 and not target.exists()
    (tmp_path / "tok" / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}}}')
    assert run(f"{line} {tmp_path / 'tok'}{dry}")[0] == 3 and not target.exists()
    good = trained_folder(tmp_path / "good")
    assert run(f"{line} {good} --template nonsense{dry}")[0] == 2 and not target.exists()


def test_an_unfinished_home_would_be_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_home(tmp_path / "half").ledger.close()
    line = f"init {tmp_path / 'half'} --recipe {CONFIGS}/pretrain/micro.yaml --tokenization char --dry-run"
    assert _runner(capsys)(line)[0] == 0


def test_an_index_of_a_folder_is_planned_without_making_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, docs, out_dir = _runner(capsys), tmp_path / "docs", tmp_path / "out"
    docs.mkdir()
    (docs / "a.md").write_text(text_of(3000))
    (docs / "b.pdf").write_text("x")
    code, out, _err = run(f"index build --docs-dir {docs} --out-dir {out_dir} --dry-run --json")
    found = json.loads(out)
    assert (code, found["documents"], found["bytes"]) == (0, 1, os.path.getsize(docs / "a.md")) and not out_dir.exists()
    assert [item["name"] for item in found["skipped"]] == ["b.pdf"]
    out_dir.mkdir()
    (out_dir / "x").write_text("")
    assert run(f"index build --docs-dir {docs} --out-dir {out_dir} --dry-run")[0] == 2
    assert run(f"index build --docs-dir {tmp_path / 'none'} --out-dir {out_dir} --dry-run")[0] == 4


@pytest.mark.parametrize("words", [0, 60, 3000, 20_000])
def test_the_estimate_of_chunks_is_near_the_truth(words: int) -> None:
    text = text_of(words)
    real, told = len(chunk_text(text, 800, 120)), estimate_chunks(len(text), 800, 120)
    assert real * 0.6 <= told <= real * 1.6 + 1
