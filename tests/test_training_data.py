from collections import Counter

from tiny_model import make_prepared, make_tiny_base

from training.data import load_rows, reading_order

LENGTHS = [20 + (row * 37) % 80 for row in range(100)]


def test_every_row_is_read_once_in_each_pass():
    order = reading_order(LENGTHS, steps=25, batch_rows=8, seed=3)
    assert len(order) == 200
    assert set(Counter(order).values()) == {2}


def test_every_step_has_all_its_rows_although_a_pass_does_not_fill_its_last_one():
    order = reading_order(LENGTHS, steps=13, batch_rows=8, seed=3)
    assert len(order) == 104
    counts = Counter(order)
    assert len(counts) == 100
    assert set(counts.values()) == {1, 2}


def test_rows_of_one_step_are_of_like_length_and_steps_are_not_sorted():
    order = reading_order(LENGTHS, steps=12, batch_rows=8, seed=3)
    steps = [order[start : start + 8] for start in range(0, len(order), 8)]
    spreads = [LENGTHS[step[0]] - LENGTHS[step[-1]] for step in steps]
    assert max(spreads) <= 10  # of a range of 80
    longest = [LENGTHS[step[0]] for step in steps]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_the_order_follows_from_the_seed_alone():
    assert reading_order(LENGTHS, 12, 8, seed=3) == reading_order(LENGTHS, 12, 8, seed=3)
    assert reading_order(LENGTHS, 12, 8, seed=3) != reading_order(LENGTHS, 12, 8, seed=4)


def test_fewer_rows_than_a_step_needs_are_read_again():
    order = reading_order([10, 20, 30], steps=2, batch_rows=8, seed=3)
    assert len(order) == 16
    assert set(Counter(order).values()) <= {5, 6}


def test_all_ranks_get_rows_of_the_same_lengths_and_together_those_that_one_would_read(tmp_path):
    prepared = make_prepared(tmp_path / "prepared", make_tiny_base(tmp_path / "base"))
    alone, together = (load_rows(prepared, steps=12, batch_rows=8, seed=3, ranks=ranks) for ranks in (1, 2))
    for step in range(12):
        first, second = (together.row_tokens[8 * step + start : 8 * step + start + 4] for start in (0, 4))
        assert all(one >= other for one, other in zip(first, second, strict=True))
        assert sum(first) - sum(second) <= first[0] - second[-1]
        assert sorted(together.row_ids(step, step + 1)) == sorted(alone.row_ids(step, step + 1))
    assert together.tokens_after_step == alone.tokens_after_step
