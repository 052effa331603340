"""Folders that are one data set, dropped into the inbox: one drop, one original, one job, from the claim to the version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from folder_help import hub, texts, write_files
from toy import Toy

from guard.store.files import find_file


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    root = shared_scratch / "folders"
    Toy(root).make_base().die()
    return root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Toy:
    os.system(f"cp -a {template} {scratch}/home")
    return Toy(scratch / "home")


def test_a_folder_is_one_drop_one_original_and_one_version(toy: Toy) -> None:
    hub(toy.home.inbox / "sums")
    toy.engine.hint()
    toy.settle()
    assert toy.drops() == [("sums", "admitted", "57 new examples")]
    file = find_file(toy.keeper.ledger, "sums")
    print(file.record)
    print(toy.jobs(), toy.versions())
    assert 0
