"""One integer seed, many independent streams: a purpose and its indices are hashed into a seed of their own.

``derive_seed(0, "shuffle", 3)`` depends on nothing but its arguments: not on how many numbers another purpose drew
before, nor on the process, the device or the layers that are trained beside this one. That is what makes a resumed run
and a run over a set of layers repeat the single uninterrupted one. Seeds made by addition (``seed + 3``) would make the
third shuffle of seed 0 the first of seed 3; a hash keeps them apart. Standard library only.
"""

from __future__ import annotations

import hashlib
import json


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for `purpose`: SHA-256 over the JSON list ``[seed, *purpose]``, its first 63 bits.

    The JSON keeps types and borders apart: ``("a", 1)``, ``("a1",)`` and ``("a", "1")`` give three different seeds.
    """
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
