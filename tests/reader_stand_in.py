"""A reader of dropped files that does what the file's name says: die, hang, grow, babble, or answer.

For `test_daemon_children.py`. Not a reader: it opens nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        word = request["name"].split()[0]
        if word == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "hang":
            time.sleep(600)
        if word == "grow":
            kept = b"x" * (400 << 20)
            time.sleep(600)
            print(len(kept))
        print("this is no answer" if word == "babble" else json.dumps({"id": request["id"], "verdict": "ok"}), flush=True)


if __name__ == "__main__":
    main()
