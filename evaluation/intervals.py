"""Intervals behind the gate: paired shares, one share, and a paired difference of losses.

All three are read through `Measured`: the gate needs an interval, and how far the data stand from a bound in standard
errors. In all three that distance grows with the square root of the number of items, which gives the items that are
missing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from scipy.optimize import bisect
from scipy.stats import binomtest, norm, t

SETTLING_POWER = 0.8
"""Least chance that an evaluation of the size given by `items_to_settle` settles the question (Cohen's convention)."""
ON_THE_BOUND = 1e-9
"""Standard errors below which a distance is rounding."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval around its estimate."""

    estimate: float
    low: float
    high: float


class Measured(Protocol):
    """A figure measured on items."""

    @property
    def items(self) -> int:
        """Number of items, or of pairs of them."""
        ...

    def interval(self, confidence: float) -> Interval:
        """Give the two-sided interval; its lower end alone errs with probability (1 - confidence) / 2."""
        ...

    def z_score(self, bound: float) -> float:
        """Give the distance from `bound`, in standard errors; positive above it."""
        ...


@dataclass(frozen=True)
class PairedShares:
    """Two models right or wrong on the same items.

    Only items that one of them gets right tell them apart: `gained` by the first model, `lost` by it to the second. The
    interval inverts the score test (Tango 1998, Statistics in Medicine 17, 891-908). With 50 pairs of which 4 % differ,
    a Wald interval's one-sided 5 % test passes a model at the margin 22 times in 100; the score test does so 2 times.
    """

    gained: int
    lost: int
    items: int

    def interval(self, confidence: float) -> Interval:
        """Give the interval of the difference of shares, within -1 and 1."""
        z = _two_sided_z(confidence)
        low = _tango_low(self.gained, self.lost, self.items, z)
        high = -_tango_low(self.lost, self.gained, self.items, z)
        return Interval((self.gained - self.lost) / self.items, low, high)

    def z_score(self, bound: float) -> float:
        """Give Tango's statistic for the hypothesis that the difference of shares is `bound`."""
        return _tango_z(self.gained, self.lost, self.items, bound)


@dataclass(frozen=True)
class Share:
    """Items of which some pass, with Wilson's score interval (Newcombe 1998, Statistics in Medicine 17, 857-872)."""

    passed: int
    items: int

    def interval(self, confidence: float) -> Interval:
        """Give Wilson's interval, within 0 and 1."""
        found = binomtest(self.passed, self.items).proportion_ci(confidence, method="wilson")
        return Interval(self.passed / self.items, float(found.low), float(found.high))

    def z_score(self, bound: float) -> float:
        """Give the score statistic for the hypothesis that the share is `bound`."""
        return _ratio(self.passed - self.items * bound, math.sqrt(self.items * max(bound * (1 - bound), 0.0)))


@dataclass(frozen=True)
class PairedLoss:
    """Two models' losses on the same items, as a difference per token.

    The difference is a ratio of sums over items, nats over tokens. Tokens of one answer are not independent, so the
    item is the unit: linearised variance of a ratio (Cochran 1977, Sampling Techniques, 6.4; as clustered errors in
    Miller 2024, arXiv:2411.00640) with Student's t. Chosen over a BCa bootstrap after simulating both at 95 %: with
    symmetric savings it covers 94.6, 94.7 and 95.1 % at 20, 50 and 200 items (BCa 91, 93 and 94); with log-normal ones
    (sigma 1.2) both fall to 80, 87 and 91 %. It also draws no random numbers and says how many items are missing.
    """

    estimate: float
    standard_error: float
    items: int

    @classmethod
    def between(cls, saved_nats: Sequence[float], tokens: Sequence[int]) -> Self:
        """Measure from the nats that the first model saves on each item and the item's tokens; at least two items."""
        nats, weights = np.asarray(saved_nats, dtype=float), np.asarray(tokens, dtype=float)
        items = len(nats)
        estimate = float(nats.sum() / weights.sum())
        residuals = nats - estimate * weights
        error = math.sqrt(items / (items - 1) * float(residuals @ residuals)) / float(weights.sum())
        return cls(estimate, error, items)

    def interval(self, confidence: float) -> Interval:
        """Give the interval in nats per token."""
        half = float(t.ppf((1 + confidence) / 2, self.items - 1)) * self.standard_error
        return Interval(self.estimate, self.estimate - half, self.estimate + half)

    def z_score(self, bound: float) -> float:
        """Give the distance of the difference from `bound`, in standard errors."""
        return _ratio(self.estimate - bound, self.standard_error)


def items_to_settle(measured: Measured, bound: float, confidence: float) -> int | None:
    """Count the items, those at hand included, with which the interval would probably exclude `bound`.

    Assumes that more items look like these: the same estimate and the same discordance. Then the distance from the
    bound grows with the square root of the items, and it must reach z(confidence) + z(`SETTLING_POWER`).

    Returns:
        The number of items, or None when the estimate lies on the bound, where no number would do.
    """
    distance = abs(measured.z_score(bound))
    if distance < ON_THE_BOUND:
        return None
    needed = (_two_sided_z(confidence) + float(norm.ppf(SETTLING_POWER))) / distance
    return math.ceil(measured.items * needed**2)


def _two_sided_z(confidence: float) -> float:
    return float(norm.ppf((1 + confidence) / 2))


def _tango_z(gained: float, lost: float, items: float, bound: float) -> float:
    """Score statistic; `lost_share` is the maximum-likelihood share of lost items under the hypothesis."""
    linear = -gained - lost + (2 * items - gained + lost) * bound
    constant = -lost * bound * (1 - bound)
    lost_share = (math.sqrt(max(linear**2 - 8 * items * constant, 0.0)) - linear) / (4 * items)
    variance = items * (2 * lost_share + bound * (1 - bound))
    return _ratio(gained - lost - items * bound, math.sqrt(max(variance, 0.0)))


def _tango_low(gained: float, lost: float, items: float, z: float) -> float:
    """Find the smallest difference that the test does not refuse; the statistic falls from infinity at -1 to 0."""
    estimate = (gained - lost) / items
    if estimate == -1.0:
        return -1.0
    return float(bisect(lambda bound: _tango_z(gained, lost, items, bound) - z, -1.0, estimate, xtol=1e-9))


def _ratio(distance: float, error: float) -> float:
    if distance == 0.0:
        return 0.0
    return distance / error if error > 0.0 else math.copysign(math.inf, distance)
