"""Which examples are held out for validation: a pure function of the example and the home's salt.

An example is held out for ever, in every file and on every line, because nothing enters the decision but its
fingerprint, the salt and the fraction. Raising the fraction later only adds examples to the held-out side.
This file keeps no list and knows no file: whoever prepares a dataset asks it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from guard.errors import UsageError
from guard.fingerprint import FINGERPRINT_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["held_out_mask", "is_held_out"]


def held_out_mask(fingerprints: bytes, salt: str, fraction: float) -> NDArray[np.bool_]:
    """One answer [n] per 16-byte fingerprint in `fingerprints` (the bytes of an `examples.fp`), in order.

    The two big-endian words of a fingerprint are each joined by XOR with a word of blake2b(salt) and mixed by the
    finaliser of SplitMix64 (Steele, Lea, Flood 2014), one after the other; the result as a fraction of 2**64 is
    compared with `fraction`. Fingerprints are random already: the mixing only has to depend on the salt.
    Raises UsageError when the fraction is not in [0, 1] or the bytes are not whole fingerprints.
    """
    import numpy as np  # most processes that know this module never ask

    if not 0.0 <= fraction <= 1.0:
        raise UsageError(f"the held-out fraction is {fraction}, which is not between 0 and 1",
                         hint="set validation.fraction to a number such as 0.05")  # fmt: skip
    if len(fingerprints) % FINGERPRINT_BYTES:
        raise UsageError(f"{len(fingerprints)} bytes are not a whole number of {FINGERPRINT_BYTES}-byte fingerprints")
    words = np.frombuffer(fingerprints, dtype=">u8").reshape(-1, 2).astype(np.uint64)
    if fraction == 1.0:
        return np.ones(len(words), dtype=bool)
    first, second = np.frombuffer(blake2b(salt.encode("utf-8"), digest_size=16).digest(), dtype=">u8").astype(np.uint64)
    mixed = _mix(_mix(words[:, 0] ^ first) ^ words[:, 1] ^ second)
    return mixed < np.uint64(int(fraction * 2**64))


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    import numpy as np

    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    return word ^ (word >> np.uint64(31))


def is_held_out(fingerprint: bytes, salt: str, fraction: float) -> bool:
    """The answer for one 16-byte fingerprint; raises UsageError like `held_out_mask`."""
    if len(fingerprint) != FINGERPRINT_BYTES:
        raise UsageError(f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(fingerprint)}")
    return bool(held_out_mask(fingerprint, salt, fraction)[0])
