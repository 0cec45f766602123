"""Long rows lose what the policy says, and the receipt says what any limit would cost."""

import numpy as np
import pytest

from tuneline.contracts.receipt import LengthLimit
from tuneline.contracts.records import IGNORED_LABEL, Example
from tuneline.data.lengths import fit, histogram, limit_costs, limits_around, lost_by_truncation, summarise
from tuneline.data.masks import Span, Turn
from tuneline.data.rendering import Rendered, Tokens


def row(prompt: int, answer: int) -> Rendered:
    """Ids count from 0; the answer's are learned."""
    ids = np.arange(prompt + answer, dtype=np.int32)
    labels = np.where(ids < prompt, IGNORED_LABEL, ids).astype(np.int32)
    turns = (Turn("user", Span(0, prompt)), Turn("assistant", Span(prompt, prompt + answer)))
    example = Example(row_id="r:1", kind="conversation", format="messages")
    return Rendered("r:1", example, Tokens(ids, labels, prompt, prompt + answer), turns=turns)


def kept(prompt: int, answer: int, policy: str, limit: int = 10) -> list[list[int]]:
    return [one.tokens.ids.tolist() for one in fit(row(prompt, answer), limit, policy).rows]


@pytest.mark.parametrize("policy", ["error", "drop", "truncate_left", "truncate_right", "split"])
def test_a_row_within_the_limit_is_left_as_it_is(policy: str) -> None:
    assert kept(4, 6, policy) == [list(range(10))]


@pytest.mark.parametrize(
    ("policy", "prompt", "answer", "expected"),
    [
        ("drop", 6, 6, []),
        ("error", 6, 6, []),
        ("truncate_left", 6, 6, [list(range(2, 12))]),
        ("truncate_right", 6, 6, [list(range(10))]),
        ("truncate_right", 11, 3, []),  # nothing of the answer is left
        ("split", 6, 16, [list(range(10)), list(range(10, 20)), [20, 21]]),
        ("split", 12, 4, [list(range(10, 16))]),  # the first window has nothing to learn
    ],
)
def test_a_long_row_becomes_what_the_policy_says(
    policy: str, prompt: int, answer: int, expected: list[list[int]]
) -> None:
    assert kept(prompt, answer, policy) == expected


def test_turns_labels_and_answer_move_with_a_cut() -> None:
    cut = fit(row(6, 6), 10, "truncate_left").rows[0]
    assert [(turn.role, turn.span) for turn in cut.turns] == [("user", Span(0, 4)), ("assistant", Span(4, 10))]
    assert (cut.tokens.answer_start, cut.tokens.answer_end, cut.tokens.learned) == (4, 10, 6)
    pieces = fit(row(6, 10), 10, "split").rows
    assert [piece.row_id for piece in pieces] == ["r:1:1", "r:1:2"]
    assert [piece.tokens.learned for piece in pieces] == [4, 6]


def test_limits_cost_what_counting_by_hand_says() -> None:
    rows = [row(20, 20), row(50, 30), row(10, 140)]
    lengths = np.array([len(one.tokens.ids) for one in rows], dtype=np.int32)
    learned = np.array([one.tokens.learned for one in rows], dtype=np.int32)
    limits = limits_around(100)
    assert limits[:4] == (32, 64, 100, 128)
    lost = lost_by_truncation([one.tokens.labels for one in rows], limits)
    assert limit_costs(lengths, learned, lost, 100) == (
        LengthLimit(
            limit_tokens=100,
            rows_over=1,
            learned_share_lost_by_drop=140 / 190,
            learned_share_lost_by_truncate_right=50 / 190,
        ),
        LengthLimit(  # the median is 80, so 128 is the first limit shown; 150 tokens are the longest
            limit_tokens=128,
            rows_over=1,
            learned_share_lost_by_drop=140 / 190,
            learned_share_lost_by_truncate_right=22 / 190,
        ),
        LengthLimit(
            limit_tokens=256,
            rows_over=0,
            learned_share_lost_by_drop=0.0,
            learned_share_lost_by_truncate_right=0.0,
        ),
    )
    assert int(lost[limits.index(64)]) == (80 - 64) + (150 - 64)


def test_percentiles_are_nearest_ranks_and_a_histogram_counts_every_row() -> None:
    lengths = np.arange(1, 1001, dtype=np.int32)
    summary = summarise(lengths)
    assert (summary.p50, summary.p90, summary.p95, summary.p99, summary.max) == (501, 901, 951, 991, 1000)
    bins = histogram(lengths)
    assert sum(one.rows for one in bins) == 1000
    assert [one.from_tokens for one in bins][1:] == [one.to_tokens + 1 for one in bins][:-1]
    assert all(one.rows == sum(one.from_tokens <= n <= one.to_tokens for n in range(1, 1001)) for one in bins)
