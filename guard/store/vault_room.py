"""How much room the vault's own disk has. Apart from `vault_state.py` because `status` asks, which waits for no numpy.

Not here: how much a backup needs (`daemon/costs.py`), or refusing to copy into a full vault (`vault_bring.py`).
"""

from __future__ import annotations

import shutil

from guard.store.keeper import Keeper

__all__ = ["vault_free_bytes"]


def vault_free_bytes(keeper: Keeper) -> int | None:
    """Bytes free where the vault lies, or would be begun; None where nobody can tell, and with backups switched off."""
    vault = keeper.home.vault(keeper.settings.backup.path)
    if not keeper.settings.backup.auto:
        return None
    try:
        return shutil.disk_usage(next(place for place in (vault, *vault.parents) if place.exists())).free
    except OSError:
        return None
