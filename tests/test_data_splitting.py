"""Splits, draws and mixes are pure functions of keys: the same on every machine, and steady when rows are added."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tuneline.data import splitting


def keys(count: int, start: int = 0) -> splitting.Keys:
    return np.random.default_rng(7).integers(0, 2**64, size=start + count, dtype=np.uint64)[start:]


def test_a_group_is_never_on_both_sides_and_the_share_is_about_right() -> None:
    groups = np.repeat(keys(400), 10)
    held_out = splitting.held_out_by_group(groups, 0.25, seed=1)
    assert not set(groups[held_out]) & set(groups[~held_out])
    assert 0.19 < held_out.mean() < 0.31  # 400 groups: three standard errors are 6.5 points


def test_adding_rows_moves_no_row_to_the_other_side() -> None:
    rows = keys(500)
    before = splitting.held_out_by_group(rows[:250], 0.2, seed=3)
    after = splitting.held_out_by_group(rows, 0.2, seed=3)
    assert before.tolist() == after[:250].tolist()


def test_another_seed_holds_out_other_rows() -> None:
    rows = keys(500)
    sides = [splitting.held_out_by_group(rows, 0.2, seed).tolist() for seed in (1, 2)]
    assert sides[0] != sides[1]


def test_hashes_are_spread_evenly_and_the_seed_makes_them_independent() -> None:
    rows = keys(100_000)
    first, second = splitting.uniform(rows, 1), splitting.uniform(rows, 2)
    assert first.min() >= 0 and first.max() < 1
    assert abs(first.mean() - 0.5) < 0.004  # 4 standard errors of 1 / sqrt(12 * 100,000)
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.013
    neighbours = splitting.uniform(np.arange(100_000, dtype=np.uint64), 1)
    assert abs(float(np.corrcoef(neighbours[:-1], neighbours[1:])[0, 1])) < 0.013


def test_by_time_the_newest_rows_are_held_out_and_moments_are_not_torn() -> None:
    times = np.array([3.0, 1.0, 2.0, 5.0, 5.0, 4.0])
    assert splitting.held_out_by_time(times, 0.5).tolist() == [False, False, False, True, True, True]
    assert splitting.held_out_by_time(times, 0.34).tolist() == [False, False, False, True, True, False]
    assert not splitting.held_out_by_time(times, 0.17).any()  # one row wanted, but the newest moment has two
    assert not splitting.held_out_by_time(np.ones(10), 0.3).any()


def test_a_draw_keeps_order_and_a_longer_list_changes_little_of_it() -> None:
    rows = keys(1000)
    drawn = splitting.draw(rows[:900], 100, seed=5)
    assert drawn.tolist() == sorted(set(drawn.tolist())) == splitting.draw(rows[:900], 100, seed=5).tolist()
    assert len(set(drawn) & set(splitting.draw(rows, 100, seed=5))) >= 80
    assert (
        splitting.draw(rows, None, seed=5).tolist() == splitting.draw(rows, 1000, seed=5).tolist() == list(range(1000))
    )


def test_first_of_names_the_first_row_with_the_same_key() -> None:
    assert splitting.first_of(np.array([9, 4, 9, 7, 4, 9], dtype=np.uint64)).tolist() == [0, 1, 0, 3, 1, 0]


def test_rows_conflict_when_their_prompt_has_two_answers_and_not_when_it_is_merely_repeated() -> None:
    prompts = np.array([1, 1, 2, 2, 3], dtype=np.uint64)
    wholes = np.array([10, 11, 20, 20, 30], dtype=np.uint64)
    assert splitting.conflicting(prompts, wholes).tolist() == [True, True, False, False, False]


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0.01, 100)), min_size=1, max_size=5))
def test_a_mix_keeps_the_weights_and_uses_some_source_whole(sources: list[tuple[int, float]]) -> None:
    counts, weights = [count for count, _ in sources], [weight for _, weight in sources]
    taken = splitting.weighted_counts(counts, weights)
    assert all(0 <= one <= count for one, count in zip(taken, counts, strict=True))
    assert any(one == count for one, count in zip(taken, counts, strict=True))
    scale = min(count / weight for count, weight in sources)
    assert all(abs(one - scale * weight) <= 0.5 for one, weight in zip(taken, weights, strict=True))


def test_replay_makes_up_its_share_of_the_mix_and_a_small_set_is_used_whole_and_once() -> None:
    assert splitting.replay_count(300, 500, 0.25) == 100
    assert splitting.replay_count(300, 7, 0.5) == 7
