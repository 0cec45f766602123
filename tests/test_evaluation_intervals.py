import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import multinomial, norm

from evaluation.intervals import PairedLoss, PairedShares, Share, items_to_settle

NEGLIGIBLE = 1e-9
"""Tables rarer than this are left out of the exact sums; together they weigh less than 1e-4."""


@pytest.mark.parametrize(
    ("gained", "lost", "items", "confidence", "low", "high"),
    [
        (0, 1, 44, 0.90, -0.096, 0.037),  # Tango 1998, soft contact lenses
        (9, 3, 32, 0.95, -0.027, 0.390),  # Tango 1998, crossover trial
        (16, 8, 86, 0.95, -0.020, 0.207),  # Agresti and Min 2005
        (1, 7, 21, 0.95, -0.517, -0.026),  # Fagerland, Lydersen and Laake 2014, airway reactivity
    ],
)
def test_paired_interval_gives_the_published_limits(gained, lost, items, confidence, low, high):
    interval = PairedShares(gained, lost, items).interval(confidence)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-4)
    assert interval.estimate == (gained - lost) / items


@pytest.mark.parametrize(
    ("passed", "items", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_share_interval_gives_the_limits_of_newcombe_1998(passed, items, low, high):
    interval = Share(passed, items).interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (50, 0), (0, 50), (25, 25), (0, 1), (49, 1)])
def test_paired_interval_holds_its_estimate_and_stays_between_minus_one_and_one(gained, lost):
    interval = PairedShares(gained, lost, 50).interval(0.95)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.high - interval.low > 0.01


def test_no_discordant_pair_still_leaves_doubt():
    """Wald's interval has length 0 here; the score interval is z^2 / (n + z^2) on each side."""
    interval = PairedShares(0, 0, 50).interval(0.95)
    expected = 1.959964**2 / (50 + 1.959964**2)
    assert (interval.low, interval.high) == pytest.approx((-expected, expected), abs=1e-6)


def test_swapping_the_models_mirrors_the_interval():
    ours, theirs = PairedShares(17, 5, 90).interval(0.95), PairedShares(5, 17, 90).interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low), abs=1e-8)


@pytest.mark.parametrize("gained,lost,items", [(9, 3, 32), (40, 70, 500), (0, 3, 60)])
def test_large_and_moderate_samples_agree_with_bonett_and_price_2012(gained, lost, items):
    interval, (low, high) = PairedShares(gained, lost, items).interval(0.95), bonett_price(gained, lost, items)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.5 / math.sqrt(items) / 3)


def test_bonett_and_price_gives_its_published_limits():
    """Fagerland, Lydersen and Laake 2017, Cavo's response data: the oracle above is itself right."""
    assert bonett_price(6, 16, 161) == pytest.approx((-0.1195, -0.0032), abs=5e-5)


@pytest.mark.parametrize("measured", [PairedShares(9, 3, 32), Share(81, 90), PairedLoss(0.12, 0.04, 5000)])
def test_ends_of_the_interval_are_where_the_score_is_critical(measured):
    interval, critical = measured.interval(0.9), norm.ppf(0.95)
    assert measured.z_score(interval.low) == pytest.approx(critical, rel=2e-3)
    assert measured.z_score(interval.high) == pytest.approx(-critical, rel=2e-3)


@pytest.mark.parametrize(("confidence", "most"), [(0.90, 0.055), (0.95, 0.027)])
def test_model_exactly_at_the_margin_is_promoted_no_oftener_than_the_confidence_says(confidence, most):
    """Exact sums over all tables: the test is allowed (1 - confidence) / 2 and a tenth of that for discreteness."""
    grid = [
        (items, margin, discordance)
        for items, margin, discordance in product((50, 100, 200), (0.0, 0.02, 0.05), (0.02, 0.05, 0.1, 0.2, 0.4))
        if discordance >= margin
    ]
    rates = {cell: promotion_rate(*cell, confidence, tango_passes) for cell in grid}
    assert max(rates.values()) <= most, max(rates, key=rates.__getitem__)
    assert rates[200, 0.05, 0.2] == pytest.approx((1 - confidence) / 2, rel=0.05)


def test_walds_interval_would_promote_four_times_too_often():
    assert promotion_rate(50, 0.02, 0.04, 0.90, wald_passes) == pytest.approx(0.219, abs=0.001)
    assert promotion_rate(50, 0.02, 0.04, 0.90, tango_passes) == pytest.approx(0.021, abs=0.001)


@pytest.mark.parametrize("items", [20, 50, 200])
def test_loss_interval_covers_the_true_difference(items):
    """Savings that vary by item, so that an item's tokens move together; 4,000 repeats err by 0.3 %."""
    generator, covered, repeats = np.random.default_rng(5), 0, 4000
    for _ in range(repeats):
        tokens = generator.integers(3, 40, items)
        interval = PairedLoss.between(generator.normal(0.1, 0.5, items) * tokens, tokens).interval(0.95)
        covered += interval.low <= 0.1 <= interval.high
    assert covered / repeats == pytest.approx(0.95, abs=0.012)


def test_loss_difference_is_weighted_by_tokens_not_by_items():
    measured = PairedLoss.between(saved_nats=[1.0, 9.0, 2.0], tokens=[1, 18, 5])
    assert measured.estimate == pytest.approx(12 / 24)


def test_loss_interval_is_student_t_on_the_linearised_ratio():
    """Worked by hand: 12 nats over 8 tokens; residuals 0.5, 1, -1.5, whose squares sum to 3.5; t(0.975, 2) = 4.3027."""
    interval = PairedLoss.between(saved_nats=[2.0, 4.0, 6.0], tokens=[1, 2, 5]).interval(0.95)
    half = 4.302653 * math.sqrt(3 / 2 * 3.5) / 8
    assert (interval.low, interval.high) == pytest.approx((1.5 - half, 1.5 + half), abs=1e-5)


def test_items_for_a_small_margin_agree_with_the_textbook():
    """n = (z(0.95) + z(0.8))^2 * discordance / margin^2 = 3,092 for equal models."""
    assert items_to_settle(PairedShares(200, 200, 2000), -0.02, 0.90) == pytest.approx(3092, rel=0.01)


@pytest.mark.parametrize(
    ("observed", "bound"),
    [(PairedShares(5, 5, 200), -0.05), (PairedShares(10, 10, 200), -0.05), (PairedShares(14, 7, 150), 0.0)],
)
def test_items_to_settle_settle_it_four_times_in_five(observed, bound):
    """Exact chance that an evaluation of that size, with the shares seen, excludes the bound."""
    needed = items_to_settle(observed, bound, 0.95)
    assert needed is not None and needed > observed.items
    difference, discordance = observed.gained - observed.lost, observed.gained + observed.lost
    shares = -difference / observed.items, discordance / observed.items
    assert 0.79 < promotion_rate(needed, *shares, 0.95, tango_passes, bound) < 0.89


def test_no_number_of_items_settles_an_estimate_on_the_bound():
    assert items_to_settle(PairedShares(10, 10, 200), 0.0, 0.95) is None


def promotion_rate(items, margin, discordance, confidence, passes, bound=None):
    """Sum the probability of every table on which the interval's lower end exceeds the bound."""
    gained, lost = np.meshgrid(np.arange(items + 1), np.arange(items + 1), indexing="ij")
    inside = gained + lost <= items
    gained, lost = gained[inside], lost[inside]
    shares = [(discordance - margin) / 2, (discordance + margin) / 2, 1 - discordance]
    weights = multinomial.pmf(np.stack([gained, lost, items - gained - lost], axis=1), items, shares)
    bound = -margin if bound is None else bound
    z = norm.ppf((1 + confidence) / 2)
    likely = np.flatnonzero(weights > NEGLIGIBLE)
    return sum(weights[i] for i in likely if passes(int(gained[i]), int(lost[i]), items, bound, z))


def tango_passes(gained, lost, items, bound, z):
    return PairedShares(gained, lost, items).z_score(bound) > z


def wald_passes(gained, lost, items, bound, z):
    difference = (gained - lost) / items
    return difference - z * math.sqrt(((gained + lost) / items - difference**2) / items) > bound


def bonett_price(gained, lost, items):
    """Bonett and Price 2012, J. Educ. Behav. Stat. 37, 479-488: Wald's interval on one more gain and one more loss."""
    one, other = (gained + 1) / (items + 2), (lost + 1) / (items + 2)
    half = norm.ppf(0.975) * math.sqrt((one + other - (one - other) ** 2) / (items + 2))
    return one - other - half, one - other + half
