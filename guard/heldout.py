"""Which examples are held out for validation: a pure function of the example and the home's salt.

An example is held out for ever, in every file and on every line, because nothing enters the decision but its
fingerprint, the salt and the fraction. Raising the fraction later only adds examples to the held-out side.
This file keeps no list and knows no file: whoever prepares a dataset asks it.
"""

from __future__ import annotations

from hashlib import blake2b

from guard.errors import UsageError
from guard.fingerprint import FINGERPRINT_BYTES

__all__ = ["held_out_mask", "is_held_out"]


def held_out_mask(fingerprints: bytes, salt: str, fraction: float) -> list[bool]:
    """One answer per 16-byte fingerprint in `fingerprints` (the bytes of an `examples.fp`), in order.

    blake2b(salt + fingerprint), 64 bits read big-endian as a fraction of 2**64, is compared with `fraction`.
    Raises UsageError when the fraction is not in [0, 1] or the bytes are not whole fingerprints.
    """
    if not 0.0 <= fraction <= 1.0:
        raise UsageError(f"the held-out fraction is {fraction}, which is not between 0 and 1",
                         hint="set validation.fraction to a number such as 0.05")  # fmt: skip
    if len(fingerprints) % FINGERPRINT_BYTES:
        raise UsageError(f"{len(fingerprints)} bytes are not a whole number of {FINGERPRINT_BYTES}-byte fingerprints")
    threshold = int(fraction * 2**64)
    salted = blake2b(salt.encode("utf-8"), digest_size=8)
    answers = []
    for start in range(0, len(fingerprints), FINGERPRINT_BYTES):
        digest = salted.copy()
        digest.update(fingerprints[start : start + FINGERPRINT_BYTES])
        answers.append(int.from_bytes(digest.digest(), "big") < threshold)
    return answers


def is_held_out(fingerprint: bytes, salt: str, fraction: float) -> bool:
    """The answer for one 16-byte fingerprint; raises UsageError like `held_out_mask`."""
    if len(fingerprint) != FINGERPRINT_BYTES:
        raise UsageError(f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(fingerprint)}")
    return held_out_mask(fingerprint, salt, fraction)[0]
