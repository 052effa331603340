"""What tests of side files share: data under columns of its own, and short ways to read how things stand."""

from __future__ import annotations

import json
from pathlib import Path

from toy import Toy

QA = "".join(json.dumps({"q": f"what is 3 plus {row}?", "a": f"{3 + row}"}) + "\n" for row in range(30))
COLUMNS = "columns: {q: user, a: assistant}\n"


def waiting(toy: Toy) -> dict[str, str]:
    return {Path(path).name: reason for path, reason in toy.engine.intake.settler.waiting().items()}


def states(toy: Toy) -> dict[str, str]:
    return {name: state for name, state, _reason in toy.drops()}
