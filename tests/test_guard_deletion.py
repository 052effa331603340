"""The rules of deletion, the labels that warn of them, and the lineage they are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from homes import add_version, make_home, set_tip, small_family

from guard.checks.deletion import ACTIVE, BASE, CHILDREN, DeletionFacts, judge_deletion, lock_label
from guard.errors import NotConfirmed, Protected
from guard.store.lineage import lineage, tree_lines

NAME = "v003_syllo_reasoning"


def facts(**changes: Any) -> DeletionFacts:
    return DeletionFacts(**{"name": NAME, "has_parent": True, "force": True, **changes})


def test_a_leaf_needs_force_and_nothing_else() -> None:
    assert judge_deletion(facts()).ok
    refused = judge_deletion(facts(force=False))
    assert refused.exit_code == 5 and "--force" in refused.reasons[0]


@pytest.mark.parametrize("change", [{"has_parent": False}, {"tip_of": ("policy",)}, {"jobs": (12,)}])
def test_base_active_and_awaited_versions_are_protected_whatever_is_typed(change: dict[str, Any]) -> None:
    verdict = judge_deletion(facts(confirm_lineage=True, confirm=NAME, **change))
    assert verdict.exit_code == 5
    assert isinstance(verdict.error(NAME), Protected) and verdict.hint


def test_every_reason_is_told_at_once() -> None:
    verdict = judge_deletion(facts(has_parent=False, tip_of=("policy", "math"), dependants=("v004_x",), force=False))
    told = " ".join(verdict.reasons)
    assert len(verdict.reasons) == 4
    assert all(word in told for word in ("base model", "policy, math", "--force", "v004_x"))


def test_dependants_need_the_lineage_confirmed_and_the_full_name_typed() -> None:
    children = ("v004_full_stack",)
    assert judge_deletion(facts(dependants=children)).exit_code == 5
    asked = judge_deletion(facts(dependants=children, confirm_lineage=True))
    assert asked.exit_code == 6
    assert asked.prompt == "This will orphan v004_full_stack. Type model name to confirm:"
    assert asked.error(NAME).message == asked.prompt
    assert judge_deletion(facts(dependants=children, confirm_lineage=True, confirm=NAME)).ok


@pytest.mark.parametrize("typed", ["", "v003", "v003_syllo_reasonin", f"{NAME} ", NAME.upper(), "v004_full_stack"])
def test_any_other_name_is_refused(typed: str) -> None:
    for dependants in (("v004_full_stack",), ()):
        verdict = judge_deletion(facts(dependants=dependants, confirm_lineage=True, confirm=typed))
        assert verdict.exit_code == 6
        assert isinstance(verdict.error(NAME), NotConfirmed)


def test_several_dependants_are_all_named_in_the_question() -> None:
    verdict = judge_deletion(facts(dependants=("v004_a", "v005_b"), confirm_lineage=True))
    assert verdict.prompt == "This will orphan v004_a, v005_b. Type model name to confirm:"


def test_labels_show_the_strictest_rule() -> None:
    assert lock_label(has_parent=False, active=True, has_dependants=True) == BASE
    assert lock_label(has_parent=True, active=True, has_dependants=True) == ACTIVE
    assert lock_label(has_parent=True, active=False, has_dependants=True) == CHILDREN
    assert lock_label(has_parent=True, active=False, has_dependants=False) == ""


def test_lineage_shows_parents_labels_and_what_was_learnt(tmp_path: Path) -> None:
    keeper = small_family(tmp_path / "home")
    versions = lineage(keeper)
    assert [(item["id"], item["parent"], item["locked"], item["active"]) for item in versions] == [
        (1, None, "LOCKED (base model)", False),
        (2, "v001_baseline", "LOCKED (has children)", False),
        (3, "v002_syllo", "LOCKED (has children)", False),
        (4, "v003_reasoning", "ACTIVE", True),
    ]
    assert versions[1]["training_data"][0]["file"] == "syllo.jsonl"
    assert versions[3]["state"] == "sealed" and versions[3]["metrics"]["final_loss"] == 1.5


def test_the_tree_shows_files_under_their_parent_as_in_the_first_drawing(tmp_path: Path) -> None:
    keeper = small_family(tmp_path / "home")
    short = lineage(keeper)[1]["training_data"][0]["hash"][:12]
    lines = tree_lines(lineage(keeper))
    assert lines[:4] == [
        "v001_baseline  LOCKED (base model)",
        f"  └─> + syllo.jsonl (hash: {short}...)",
        "       └─> v002_syllo  LOCKED (has children)",
        lines[3],
    ]
    assert lines[-1].strip() == "└─> v004_full_stack  ACTIVE"
    assert next(line for line in lines if "math.jsonl" in line).lstrip().startswith("+ ")


def test_the_tree_keeps_the_newest_and_says_where_they_come_from(tmp_path: Path) -> None:
    keeper = small_family(tmp_path / "home")
    add_version(keeper, "poison", "v002_syllo", state="quarantined")
    lines = tree_lines(lineage(keeper), newest=2)
    assert lines[0] == "(3 older versions: --all)"
    assert lines[-1] == "  └─> v005_poison  QUARANTINED  (from v002_syllo)"
    assert any("v004_full_stack  ACTIVE  (from v003_reasoning)" in line for line in lines)


def test_a_very_deep_lineage_stays_readable_and_ascends_by_number() -> None:
    chain = [{"name": f"v{number:03d}_x", "id": number, "parent": f"v{number - 1:03d}_x" if number > 1 else None,
              "training_data": [], "active": number == 2000, "locked": "", "state": "sealed"}
             for number in range(1, 2001)]  # fmt: skip
    lines = tree_lines(chain)
    assert len(lines) == 2000 and max(map(len, lines)) < 200
    assert lines[-1].strip() == "└─> v2000_x  ACTIVE  (from v1999_x)"


def test_what_stands_on_a_deleted_child_still_locks_its_grandparent(tmp_path: Path) -> None:
    keeper = make_home(tmp_path / "home")
    base = add_version(keeper, "base")
    parent = add_version(keeper, "parent", base)
    child = add_version(keeper, "child", parent)
    add_version(keeper, "grandchild", child)
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE versions SET state = 'trashed' WHERE name = ?", (child,))
    labels = {item["name"]: item["locked"] for item in lineage(keeper)}
    assert labels[parent] == CHILDREN and labels[child] == ""


def test_a_version_used_as_an_input_is_locked_like_a_parent(tmp_path: Path) -> None:
    keeper = make_home(tmp_path / "home")
    base = add_version(keeper, "base")
    reference = add_version(keeper, "reference", base, line="side")
    user = add_version(keeper, "user", base, inputs=[reference])
    set_tip(keeper, "side", user)
    assert {item["name"]: item["locked"] for item in lineage(keeper)}[reference] == CHILDREN
