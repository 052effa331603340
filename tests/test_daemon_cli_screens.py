"""What commands show, made from plain records: no home, no daemon."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.cli.backup import vault_lines
from daemon.cli.chat import fitting_turns, shown
from daemon.cli.data import index_lines, name_or_folder, result_lines
from daemon.cli.doctor import check_rows
from daemon.cli.files import exit_code_of, register_lines, register_record
from daemon.cli.homes import happened_lines
from daemon.cli.journal import event_line, parse_since
from daemon.cli.moving import rollback_lines
from daemon.cli.plans import plan_lines
from daemon.cli.prepare import dataset_lines
from daemon.cli.queue import Teller, job_lines, retry_words, watch_job
from daemon.cli.status import progress_line, render_status
from daemon.cli.verify import parse_share, verify_lines
from daemon.cli.versions import related, version_lines
from guard.errors import DaemonNotRunning, UsageError

TRAINING = {"job": 12, "base": "v004_full_stack", "output": "v005_math", "step": 1300, "steps": 2500, "loss": 0.15312,
            "tokens_per_second": 12400.0, "eta_seconds": 4980}  # fmt: skip


def _report(**changes: Any) -> dict[str, Any]:
    report = {
        "state": "training", "active": {"policy": "v004_full_stack"}, "index": "v002", "training": TRAINING,
        "queue": {"queued": 3, "running": 1, "held": 0, "failed": 0, "done": 12},
        "inbox": {"waiting": 0, "rejected": 2, "duplicates": 1},
        "tokens": {"trained": 50_000_000, "goal": 10**12, "per_second": 12400.0, "eta": 81_000_000},
        "disk": {"free_bytes": 127 * 10**9, "forks_left": 40}, "alerts": [],
    }  # fmt: skip
    return report | changes


def test_status_fits_on_one_screen() -> None:
    assert render_status(_report(), "/home/me/model") == [
        "Heirloom  /home/me/model",
        "",
        "  State      training",
        "  Active     v004_full_stack (policy)",
        "  Index      v002",
        "  Training   v005_math from v004_full_stack (job 12)",
        "             [████████████░░░░░░░░░░░░] 52 %  step 1,300/2,500  loss 0.1531  12.4K tokens/s  1h 23m left",
        "  Queue      3 queued, 1 running, 12 done",
        "  Inbox      2 rejected, 1 duplicate",
        "  Tokens     50M trained of 1T (under 0.01 %), 12.4K/s, 2.6 years to go",
        "  Disk       127 GB free, room for 40 more versions",
    ]


def test_status_of_a_home_where_nothing_runs() -> None:
    lines = render_status(_report(state="stopped", training=None, index=None, active={}), "/h")
    assert "  Training   nothing now" in lines and "  Active     none" in lines
    assert any("heirloom run" in line for line in lines)


def test_alerts_come_with_what_to_do() -> None:
    lines = render_status(_report(alerts=[{"what": "disk\nfull", "remedy": "free space"}]), "/h")
    assert lines[-2:] == ["  ⚠️  disk\\nfull", "      try: free space"]


def test_progress_before_the_first_step_says_the_phase() -> None:
    assert progress_line({"phase": "preparing"}) == "preparing"
    assert progress_line({"phase": "evaluating", "step": 0, "steps": 12}) == "evaluating"
    assert progress_line({}) == "getting ready"


REGISTERED = {"name": "my_data.jsonl", "sha256": "0123456789abcdef" * 4, "kind": "sft", "examples": 50_000,
              "tokens": 50_000_000, "bad_rows": 0, "unusable_rows": 0, "duplicates": 0,
              "status": "registered", "verdict": "registered", "reason": "50,000 new examples", "why": ""}  # fmt: skip


def test_a_registered_file_in_the_words_of_the_person_this_is_for() -> None:
    assert register_lines(REGISTERED) == [
        "✅ Data registered: my_data.jsonl",
        "   Fingerprint: 0123456789ab...",
        "   Size: 50,000 examples (50M tokens)",
        "   Status: Not yet trained",
    ]


def test_a_refused_file_tells_its_rows_by_line() -> None:
    why = "bad.jsonl was rejected.\n\nWhy: 1 row\n\n1 row:\n  line 7: not JSON\n"
    lines = register_lines(REGISTERED | {"name": "bad.jsonl", "verdict": "rejected", "why": why})
    assert lines == ["❌ Rejected: bad.jsonl", "   Why: 1 row", "   1 row:", "     line 7: not JSON"]


def test_a_refused_file_without_an_account_tells_its_reason() -> None:
    why = "x.csv came back: no rows here.\n\nNothing of it was trained on.\n"
    lines = register_lines(REGISTERED | {"name": "x.csv", "verdict": "rejected", "reason": "no rows here", "why": why})
    assert lines == ["❌ Rejected: x.csv", "   Why: no rows here", "   Nothing of it was trained on."]


def test_rows_that_were_left_out_are_counted() -> None:
    lines = register_lines(REGISTERED | {"bad_rows": 31, "unusable_rows": 1})
    assert lines[3] == ("   Note: 31 rows skipped (heirloom why my_data.jsonl), "
                        "1 row that cannot be trained on (heirloom why my_data.jsonl)")  # fmt: skip


def test_a_document_is_not_said_to_be_trained() -> None:
    lines = register_lines(REGISTERED | {"kind": "docs", "examples": 0, "tokens": 4000, "status": "queued"})
    assert lines[2:] == ["   Size: about 4K tokens",
                         "   Note: a document: it is searched, not trained on (--kind pretrain trains text)",
                         "   Status: Queued for the index"]  # fmt: skip


def test_a_dry_run_of_register_claims_nothing() -> None:
    assert register_lines(REGISTERED, dry_run=True)[0] == "✅ Can be registered: my_data.jsonl"
    assert register_lines(REGISTERED, dry_run=True)[-1] == "   Status: Not yet trained (dry run: nothing was registered)"
    refused = register_lines(REGISTERED | {"verdict": "rejected", "reason": "torn"}, dry_run=True)
    assert refused == ["❌ Would be rejected: my_data.jsonl", "   Why: torn"]


def test_the_promised_keys_of_a_registered_file() -> None:
    record = register_record(REGISTERED)
    assert list(record)[:7] == ["fingerprint", "kind", "examples", "tokens", "bad_rows", "duplicates", "status"]
    assert record["fingerprint"] == REGISTERED["sha256"]


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [(["registered"], 0), (["admitted", "duplicate"], 7), (["duplicate", "rejected", "registered"], 3), (["gone"], 3)],
)
def test_several_files_end_with_the_worst_code(verdicts: list[str], code: int) -> None:
    assert exit_code_of([{"verdict": verdict} for verdict in verdicts]) == code


def _check(name: str, ok: bool | None = True, detail: str = "", remedy: str = "", **more: bool) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail, "remedy": remedy, **more}


PLAN = {
    "base": "v004_full_stack", "data": [{"file": "my_data.jsonl", "sha256": "f" * 64}], "output": "v005_syllo_batch5",
    "line": "policy", "estimate": {"seconds": 21600, "tokens": 50_000_000},
    "checks": [_check("Data verified"), _check("Base model exists"), _check("No duplicates"),
               _check("Disk space", detail="127.0 GB free"), _check("Device available", detail="cuda:0")],
}  # fmt: skip


def test_a_plan_in_the_words_of_the_person_this_is_for() -> None:
    assert plan_lines(PLAN, is_tip=True, free_bytes=127 * 10**9) == [
        "📋 Training Plan:",
        "   Base: v004_full_stack (current: ✅)",
        "   Data: my_data.jsonl (hash: ffffffffffff...)",
        "   Output: v005_syllo_batch5",
        "   Est. time: 6 hours",
        "   Est. tokens: 50M",
        "",
        "   Pre-flight checks:",
        "   ✅ Data verified",
        "   ✅ Base model exists",
        "   ✅ No duplicates",
        "   ✅ 127 GB disk free",
        "   ✅ GPU available",
    ]


def test_a_failing_check_says_why_and_what_to_type() -> None:
    checks = [_check("Disk space", False, "9.0 GB free", "free 41 GB"), _check("Mask", None, "plain text"),
              _check("Device available", detail="CPU"), _check("Low", True, "only 3 %", warning=True)]  # fmt: skip
    lines = plan_lines(PLAN | {"checks": checks}, is_tip=False, free_bytes=9 * 10**9)
    assert "   Base: v004_full_stack (current: ❌)" in lines
    assert lines[-6:] == ["   ❌ Disk space: 9.0 GB free", "      try: free 41 GB", "   ➖ Mask: plain text",
                          "   ✅ CPU available", "   ✅ Low", "      ⚠️ only 3 %"]  # fmt: skip


def _job(number: int, state: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "state": state, "kind": "train", "files": ["a\tb.jsonl", "c.jsonl"], "base": None, "output": "v009_x",
            "line": "policy", "reason": ""} | more  # fmt: skip


def test_the_queue_shows_why_something_does_not_run() -> None:
    lines = job_lines([_job(4, "held", reason="disk full")], everything=False)
    assert lines == ["ID  STATE  KIND   OUTPUT  FILES                  WHY",
                     "4   held   train  v009_x  a\\tb.jsonl and 1 more  disk full"]  # fmt: skip


def test_a_job_without_a_number_says_what_it_will_become() -> None:
    rows = job_lines([_job(1, "queued", output=None), _job(2, "queued", output=None, kind="index"),
                      _job(3, "cancelled", output=None)], everything=False)  # fmt: skip
    assert ["next of policy" in rows[1], "next index" in rows[2], "next" in rows[3]] == [True, True, False]


@pytest.mark.parametrize(
    ("found", "words"),
    [({"job": 4, "state": "training"}, "goes on where it stopped"), ({"job": 4, "state": "queued"}, "is queued again"),
     ({"job": 9, "state": "queued"}, "is tried again as job 9")],
)  # fmt: skip
def test_a_second_try_says_what_it_is(found: dict[str, Any], words: str) -> None:
    assert retry_words(found, 4, dry_run=False) == words
    assert "would" in retry_words(found, 4, dry_run=True)


def test_a_run_tells_what_came_of_it() -> None:
    events = [{"verb": "job.held", "subject": "job 3", "reason": "disk full"}, {"verb": "version.sealed", "subject": "v002_x"},
              {"verb": "job.held", "subject": "job 3", "reason": "disk still full"}]  # fmt: skip
    assert happened_lines(events) == ["✅ v002_x is sealed", "⚠️ job 3 is held: disk still full"]
    assert happened_lines([]) == ["nothing was new"]
    many = [{"verb": "drop.rejected", "subject": f"{number}", "reason": ""} for number in range(30)]
    assert happened_lines(many)[0] == "❌ 10 was rejected" and happened_lines(many)[-1] == "and 10 more (heirloom log)"


def test_old_finished_jobs_make_room() -> None:
    lines = job_lines([_job(number, "done") for number in range(1, 15)], everything=False)
    assert len(lines) == 12 and lines[-1] == "(4 more finished: --all)"
    assert job_lines([], everything=False) == ["The queue is empty."]


def test_following_a_job_ends_with_it() -> None:
    looks = iter([(_job(4, "queued"), {}, True), (_job(4, "training"), TRAINING, True), (_job(4, "done"), {}, True)])
    told: list[str] = []
    watch_job(lambda: next(looks), told.append, lambda _seconds: None)
    assert len(told) == 2 and told[0] == "job 4 queued" and "step 1,300/2,500" in told[1]


def test_following_a_job_that_nobody_works_on_says_so() -> None:
    with pytest.raises(DaemonNotRunning):
        watch_job(lambda: (_job(4, "queued"), {}, False), lambda _text: None, lambda _seconds: None)


def test_progress_is_told_no_more_often_than_it_can_be_read() -> None:
    told: list[str] = []
    now = iter([0.0, 0.5, 2.5, 2.5, 2.6])
    teller = Teller(4, told.append, lambda: next(now))
    for step in (1, 2, 3):
        teller(TRAINING | {"step": step})
    teller({})
    teller(TRAINING | {"step": 3, "phase": "evaluating"})
    assert [line.split("  ")[-1] if "evaluating" in line else line.split("  ")[1] for line in told] == [
        "step 1/2,500", "step 3/2,500", "job 4 evaluating"]  # fmt: skip


def test_a_rollback_tells_what_became_trainable_again() -> None:
    result = {"line": "policy", "from": "v004", "to": "v002", "changed": True, "parked_job": 8,
              "trainable_again": [{"file": "math.jsonl", "sha256": "a" * 64, "examples": 15000}]}  # fmt: skip
    assert rollback_lines(result, done=True) == [
        "✅ policy: v004 -> v002",
        "   Job 8 is parked: heirloom queue retry or cancel decides about it",
        "   Trainable again (nothing re-queues by itself; drop or plan it): 1 file",
        "     math.jsonl  aaaaaaaaaaaa...  15,000 examples",
    ]
    assert rollback_lines(result | {"changed": False}, done=False) == ["v002 is the active version of policy already."]


def test_a_version_with_its_data_and_gate() -> None:
    lines = version_lines({"name": "v002_x", "parent": "v001_baseline", "metrics": {"final_loss": 4.949916, "steps": 6000},
                           "data": [{"file": "a.txt", "sha256": "b" * 64, "examples": 3, "tokens": 9000}],
                           "gate": {"checks": [_check("new data", True, "fell")]}})  # fmt: skip
    assert "  Final loss  4.9499" in lines and "  Steps       6,000" in lines
    assert "    a.txt  bbbbbbbbbbbb...  3 examples  9K tokens" in lines and "    ✅ new data: fell" in lines


def test_one_version_is_shown_with_its_ancestors_and_heirs_only() -> None:
    family = {"a": None, "b": "a", "c": "b", "d": "a", "e": "c"}
    records = [{"name": name, "parent": parent} for name, parent in family.items()]
    assert [item["name"] for item in related(records, "b")] == ["a", "b", "c", "e"]


def test_verify_names_damage_and_the_way_back() -> None:
    checked = {"versions": 1, "files": 3, "bytes": 5000}
    damage = [{"what": "version", "name": "v002_x", "file": "model.safetensors", "problem": "changed", "descendants": ["v003"],
               "remedy": "heirloom restore v002_x"}]  # fmt: skip
    assert verify_lines({"ok": True, "checked": checked, "damage": []})[0].startswith("✅")
    assert verify_lines({"ok": False, "checked": checked, "damage": damage}) == [
        "❌ Damage found (1 version, 3 files, 5 kB read)",
        "   version v002_x model.safetensors: changed",
        "      grown from it: v003",
        "      try: heirloom restore v002_x",
    ]


def test_shares() -> None:
    assert parse_share("5%") == 0.05 and parse_share("0.5") == 0.5 and parse_share(None) is None
    for wrong in ("0", "101%", "-5%", "much"):
        with pytest.raises(UsageError):
            parse_share(wrong)


def test_a_vault_on_the_same_disk_says_so() -> None:
    lines = vault_lines({"vault": "/b", "present": True, "problem": "", "other_device": False, "bytes": 10,
                         "versions": {"total": 2, "verified": 1, "missing": ["v002_x"]},
                         "originals": {"total": 1, "verified": 0, "missing": ["a" * 64]},
                         "ledger": {"newest": None, "behind": 4}, "last_verified": None})  # fmt: skip
    assert "   Versions: 1 of 2 read back" in lines and f"   Not safe yet: v002_x, {'a' * 12}..." in lines
    assert any("same disk" in line for line in lines)


def test_checks_with_their_marks() -> None:
    assert check_rows([_check("A", False, "no", "do"), _check("B", None, "n/a"), _check("C", True, "hm", warning=True)]) == [
        "❌ A: no", "   try: do", "➖ B: n/a", "⚠️  C: hm"]  # fmt: skip


def test_times_since() -> None:
    now = 1_000_000_000.0  # 2001-09-09T01:46:40Z
    assert parse_since("2d", now) == "2001-09-07T01:46:40.000Z"
    assert parse_since("90m", now) == "2001-09-09T00:16:40.000Z"
    assert parse_since("2001-09-01T00:00:00+02:00", now) == "2001-08-31T22:00:00.000Z"
    assert parse_since("5000w", now).startswith("1970-01-01")
    for wrong in ("yesterday", "2y", ""):
        with pytest.raises(UsageError):
            parse_since(wrong, now)


def test_an_event_on_one_line() -> None:
    event = {"utc": "2026-11-21T01:02:03.456Z", "verb": "version.sealed", "subject": "a\nb", "actor": "me:cli",
             "payload": {"sums": "c" * 64, "line": "policy", "empty": ""}}  # fmt: skip
    assert event_line(event) == ("2026-11-21 01:02:03  version.sealed      a\\nb  (me:cli)  sums=cccccccccccc...  line=policy")


def test_lists_and_truths_of_an_event_are_words() -> None:
    event = {"utc": "2026-11-21T01:02:03.456Z", "verb": "job.queued", "subject": "job 3", "actor": "me:cli",
             "payload": {"files": ["c" * 64, "d" * 64], "once": True}}  # fmt: skip
    assert event_line(event).endswith("(me:cli)  files=cccccccccccc..., dddddddddddd...  once=yes")


def test_search_results_say_where_they_stand() -> None:
    hit = {"file": "guide.md", "text": "a\n b", "score": 0.5, "page": None, "start_line": 3, "end_line": 9}
    assert result_lines([hit]) == ["[1] guide.md:3-9  (0.500)", "    a b"]
    assert result_lines([hit | {"page": 4}])[0] == "[1] guide.md, page 4  (0.500)"
    assert result_lines([]) == ["Nothing found."]


def test_an_index_is_named_by_version_or_folder() -> None:
    assert name_or_folder("v002") == ("v002", None) and name_or_folder(None) == (None, None)
    assert name_or_folder("vault") == (None, "vault") and name_or_folder("./v002") == (None, "./v002")


def test_an_answer_stands_above_its_sources() -> None:
    source = {"number": 1, "file": "g.md", "page": None, "start_line": 1, "end_line": 7}
    assert shown("Yes.\x07\nReally.", [source]) == ["Yes.\\x07", "Really.", "", "[1] g.md:1-7"]
    assert shown("Yes.", []) == ["Yes."] and shown(" ", []) == ["(the model said nothing)"]


def test_old_turns_make_room_and_the_question_stays() -> None:
    turns = [{"role": "user", "content": str(number)} for number in range(5)]
    assert fitting_turns(turns, 3, len) == turns[2:]
    assert fitting_turns(turns, 0, len) == turns[-1:]


def test_a_prepared_dataset_names_what_was_left_out() -> None:
    split = {"examples": 9, "tokens": 900, "shards": 1}
    lines = dataset_lines({"output_dir": "/d", "train": split, "val": split, "tokenization": "char", "kind": "sft",
                           "mask_ratio": 0.5, "warnings": ["low"], "skipped_rows": 1, "removed": [".d.7.making"],
                           "skipped": [{"file": "a", "line": 2, "field": "text", "reason": "missing"}]})  # fmt: skip
    assert "   Mask ratio: 50.0% of the tokens are trained" in lines and "     a:2 text missing" in lines
    assert lines[-1] == "   Removed .d.7.making: a run that was killed had left it"
    assert index_lines({"documents": 1, "chunks": 2, "embedded_new": 2, "skipped": [{"name": "x", "reason": "no text"}]},
                       "/i")[-1] == "   ⚠️ left out x: no text"  # fmt: skip
