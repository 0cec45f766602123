import pytest

from evaluation.charts import forest_row, line_chart, nice_ticks, stacked_bar
from tuneline.contracts.artifacts import Check, Outcome


def test_forest_row_keeps_the_order_of_bound_and_interval():
    check = Check(
        name="retention",
        question="?",
        estimate=-0.01,
        low=-0.03,
        high=0.01,
        bound=-0.05,
        items=10,
        outcome=Outcome.PROMOTE,
        reason="",
    )
    row = forest_row(check, "points")
    assert 0 < row.bound < row.low < row.estimate < row.high < 100
    assert (row.low - row.bound) == pytest.approx(row.estimate - row.low)
    assert (row.label, row.bound_label) == ("-1.0 points (-3.0 to +1.0)", "-5.0 points")


def test_line_chart_spans_its_box_and_skips_what_is_not_a_number():
    chart = line_chart([(1, 4.0), (2, float("nan")), (3, 0.0), (5, 2.0)], 400, 200)
    assert chart is not None
    points = [tuple(float(value) for value in point.split(",")) for point in chart.line.split()]
    assert points == [(chart.left, chart.top), (pytest.approx(219.0), chart.bottom), (chart.right, pytest.approx(92.0))]
    assert line_chart([(1, 4.0)], 400, 200) is None


def test_marks_beside_a_line_share_its_axes():
    chart = line_chart([(0, 1.0), (10, 2.0)], 400, 200, marks=[(5, 4.0)])
    ((x, y),) = chart.marks
    assert x == (chart.left + chart.right) / 2
    assert y == chart.top  # the highest point of all, though it is not on the line
    assert chart.end_y > chart.top


def test_long_run_is_drawn_with_few_points_and_keeps_its_last_one():
    chart = line_chart([(step, float(step == 50_000)) for step in range(1, 50_001)], 760, 260)
    assert chart is not None
    assert len(chart.line.split()) <= 601
    assert (chart.end_x, chart.end_y) == (chart.right, chart.top)


def test_ticks_are_round_and_cover_the_data():
    assert nice_ticks(0.0, 3.9, 4) == [0, 1, 2, 3, 4]
    assert nice_ticks(2.1, 2.45, 4) == [2.1, 2.2, 2.3, 2.4, 2.5]
    assert nice_ticks(5.0, 5.0, 4)[0] <= 5.0 <= nice_ticks(5.0, 5.0, 4)[-1]


def test_bar_lays_its_parts_end_to_end_largest_first():
    parts = stacked_bar([("weights", 1.0), ("activations", 3.0)], whole=8.0)
    assert [(part.label, part.left, part.width) for part in parts] == [
        ("activations", 0.0, 37.5),
        ("weights", 37.5, 12.5),
    ]
