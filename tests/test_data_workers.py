"""Work done by several processes comes out as if one had done it, and their end is bounded."""

import os
from collections.abc import Iterator

import pytest

from tuneline.data.workers import Workers, chunked


def square(numbers: list[int]) -> list[int]:
    return [number * number for number in numbers]


def process(_: list[int]) -> int:
    return os.getpid()


def refuse_seven(numbers: list[int]) -> list[int]:
    if 7 in numbers:
        raise ValueError("seven")
    return numbers


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_chunks_order_whatever_the_number_of_workers(count: int) -> None:
    with Workers(count) as workers:
        assert list(workers.map(square, chunked(range(100), 7))) == [
            [n * n for n in range(start, min(start + 7, 100))] for start in range(0, 100, 7)
        ]


def test_one_worker_is_this_process_and_more_are_not() -> None:
    with Workers(1) as workers:
        assert set(workers.map(process, [[1], [2]])) == {os.getpid()}
    with Workers(2) as workers:
        assert os.getpid() not in set(workers.map(process, [[n] for n in range(8)]))


def test_chunks_are_read_only_a_few_ahead_of_the_results() -> None:
    taken = 0

    def source() -> Iterator[list[int]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield [number]

    with Workers(2) as workers:
        results = workers.map(square, source())
        next(results)
        assert taken <= 2 * 4 + 1
        results.close()


def test_an_error_in_a_worker_is_raised_here() -> None:
    with pytest.raises(ValueError, match="seven"), Workers(2) as workers:
        list(workers.map(refuse_seven, chunked(range(20), 2)))
