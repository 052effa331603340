"""Making a home: its folders, its ledger, its settings file and, last of all, its identity.

The store id is written last: a home without one is unfinished and `init` may be run again over it; a home with one is
never touched by `init`. Not here: the first version (`daemon/setup.py`).
"""

from __future__ import annotations

import secrets
from pathlib import Path

from guard.clock import Clock
from guard.durable import fsync_dir, make_dir, write_bytes, write_text
from guard.errors import CheckFailed
from guard.failpoints import point
from guard.home import Home
from guard.names import parse_version_number
from guard.seal import require_seal
from guard.settings_read import load_settings
from guard.store.keeper import default_actor
from guard.store.ledger import Ledger
from guard.store.rebuild_facts import rows_of

__all__ = ["SETTINGS_TEXT", "check_place", "create_home"]

SETTINGS_TEXT = """\
# Settings of this Heirloom. Everything has a default: `heirloom config show --origin` lists all of them.
# An entry here counts less than the environment (HEIRLOOM_DISK__RESERVE_GB=100) and less than a flag.
#
# disk:
#   reserve_gb: 50        # free space that no job may eat into
# backup:
#   path: /mnt/other-disk/heirloom   # the vault protects only when it is on another device
# gate: enforce           # enforce | warn | off
"""


def create_home(home: Home, *, clock: Clock, recipes: Path) -> None:
    """Make the folders, ledger and identity of a home. Raises CheckFailed over a finished or foreign one
    and where it cannot be sealed as its settings say."""
    check_place(home)
    for folder in home.folders():
        make_dir(folder)
    require_seal(load_settings(home.root).storage.seal, home.staging)
    point("init.folders")
    _copy_recipes(recipes, home.configs)
    if not (home.configs / "heirloom.yaml").exists():
        write_text(home.configs / "heirloom.yaml", SETTINGS_TEXT)
    point("init.recipes")
    store_id = _create_ledger(home, clock)
    point("init.ledger")
    write_text(home.store_id_file, f"{store_id}\n")
    fsync_dir(home.root)
    point("init.identified")


def _create_ledger(home: Home, clock: Clock) -> str:
    """The ledger with its store id and hold-out salt; an unfinished earlier attempt is taken up."""
    actor = default_actor("init")
    ledger = Ledger(home.ledger, clock=clock, actor=actor) if home.ledger.exists() else Ledger.create(
        home.ledger, clock=clock, actor=actor)  # fmt: skip
    settings = load_settings(home.root)
    try:
        if ledger.meta("store_id") is None:
            with ledger.transaction():
                identity = secrets.token_hex(16)
                salt, fraction = settings.validation.salt or secrets.token_hex(16), str(settings.validation.fraction)
                ledger.set_meta("store_id", identity)
                ledger.set_meta("validation_salt", salt)
                ledger.set_meta("validation_fraction", fraction)
                # In the event too: a ledger that is made again must hold out the same examples for ever.
                ledger.event("home.created", str(home.root.name), store_id=identity, validation_salt=salt,
                             validation_fraction=fraction)  # fmt: skip
        store_id = ledger.meta("store_id")
        assert store_id is not None
        return store_id
    finally:
        ledger.close()


def check_place(home: Home) -> None:
    """Whether a home may be made here; changes nothing. Raises CheckFailed over a finished home and in a wrong place."""
    if home.store_id_file.exists():
        raise CheckFailed(f"{home.root} is a home already", subject=str(home.root),
                          hint=f"heirloom --home {home.root} status")  # fmt: skip
    _refuse_nameless(home)
    _refuse_foreign(home)


def _refuse_nameless(home: Home) -> None:
    """A ledger that knows versions is no unfinished home: its store id got lost, and nothing is made over it (law 9)."""
    versions = rows_of(home.ledger, "SELECT name FROM versions LIMIT 1") if home.ledger.is_file() else []
    folders = [path.name for path in home.models.iterdir() if parse_version_number(path.name)] if home.models.is_dir() else []
    if versions or folders:
        raise CheckFailed(f"{home.root} holds a home whose .heirloom/store-id is missing", subject=str(home.root),
                          hint=f"heirloom --home {home.root} doctor --rebuild writes it again")  # fmt: skip


def _refuse_foreign(home: Home) -> None:
    """Never settle into models/ or data/ that somebody else filled, nor inside another home's working folders."""
    for folder in (home.models, home.data):
        if folder.is_dir():
            strange = [path.name for path in folder.iterdir() if path.name not in _OWN_NAMES]
            if strange and not home.ledger.exists():
                raise CheckFailed(f"{folder} already holds {', '.join(sorted(strange)[:3])}", subject=str(folder),
                                  hint="choose an empty folder: heirloom init DIR")  # fmt: skip
    for parent in home.root.absolute().parents:
        if (parent / ".heirloom").is_dir():
            raise CheckFailed(f"{home.root} lies inside the home {parent}", subject=str(home.root),
                              hint=f"homes do not nest: choose a folder outside {parent}")  # fmt: skip


_OWN_NAMES = {"README.md", ".staging", ".trash", ".incoming", "files", "shards", "docs", "index", "pairs", "density", "events"}


def _copy_recipes(recipes: Path, configs: Path) -> None:
    if not recipes.is_dir():
        raise CheckFailed(f"the shipped recipes are missing at {recipes}", subject=str(recipes),
                          hint="install Heirloom from its checkout: make venv")  # fmt: skip
    for source in sorted(recipes.glob("*/*.yaml")):
        target = configs / source.parent.name / source.name
        if not target.exists():
            make_dir(target.parent)
            write_bytes(target, source.read_bytes())
