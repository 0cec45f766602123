"""Groups of different lengths that lie one after another in flat arrays: what is done to all of them at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def offsets_of(lengths: NDArray[Any] | Sequence[int]) -> Places:
    """Number the first member of each group, and after them count the members."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def places_of(starts: Places, lengths: Places) -> Places:
    """Number the members of groups that begin anywhere: starts 7 and 3, lengths 2 and 3 give 7 8 3 4 5."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
