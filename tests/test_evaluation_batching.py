"""Batches under a token budget, and what happens when one does not fit in memory."""

import pytest
import torch

from evaluation.batching import batches_by_length, halving

LENGTHS = [3, 50, 7, 7, 1, 20, 19, 8, 200, 4]


@pytest.mark.parametrize("budget", [1, 20, 64, 10_000])
def test_every_row_is_in_one_batch_and_padding_counts_against_the_budget(budget: int) -> None:
    batches = batches_by_length(LENGTHS, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(LENGTHS)))
    assert all(len(batch) * max(LENGTHS[row] for row in batch) <= budget or len(batch) == 1 for batch in batches)


def test_batches_hold_rows_of_like_lengths_and_the_longest_come_first() -> None:
    assert [[LENGTHS[row] for row in batch] for batch in batches_by_length(LENGTHS, 64)] == [
        [200],
        [50],
        [20, 19, 8],
        [7, 7, 4, 3, 1],
    ]


def test_a_batch_that_does_not_fit_in_memory_is_computed_in_halves_and_in_order() -> None:
    sizes: list[int] = []

    def squares(rows: list[int]) -> list[int]:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError
        return [row * row for row in rows]

    assert halving(squares, [5, 1, 4, 2, 3, 9, 7]) == [25, 1, 16, 4, 9, 81, 49]
    assert sizes == [7, 3, 4, 2, 2]


def test_one_row_that_does_not_fit_is_an_error() -> None:
    def full(rows: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        halving(full, [1, 2])
