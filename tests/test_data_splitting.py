from collections import Counter

from tuneline.data.splitting import draw, mix, split_by_group


def test_a_group_is_never_on_both_sides_and_the_share_is_about_right() -> None:
    rows = [f"group{number % 400}/{number}" for number in range(4000)]
    split = split_by_group(rows, lambda row: row.split("/")[0], 0.25, seed=1)
    sides = [{row.split("/")[0] for row in side} for side in (split.train, split.held_out)]
    assert not sides[0] & sides[1]
    assert len(split.train) + len(split.held_out) == 4000
    assert 0.19 < len(split.held_out) / 4000 < 0.31  # 400 groups: three standard errors are 6.5 points


def test_adding_rows_moves_no_row_to_the_other_side() -> None:
    rows = [str(number) for number in range(500)]
    before = split_by_group(rows[:250], str, 0.2, seed=3)
    after = split_by_group(rows, str, 0.2, seed=3)
    assert set(before.train) <= set(after.train)
    assert set(before.held_out) <= set(after.held_out)


def test_another_seed_holds_out_other_rows() -> None:
    rows = [str(number) for number in range(500)]
    assert split_by_group(rows, str, 0.2, seed=1).held_out != split_by_group(rows, str, 0.2, seed=2).held_out


def test_a_draw_keeps_order_and_is_repeatable() -> None:
    rows = list(range(100))
    drawn = draw(rows, 10, seed=5)
    assert drawn == sorted(drawn) == draw(rows, 10, seed=5)
    assert len(set(drawn)) == 10
    assert draw(rows, None, seed=5) == draw(rows, 1000, seed=5) == rows


def test_replay_makes_up_its_share_of_the_mix() -> None:
    mixed = mix(["new"] * 300, ["old"] * 500, 0.25, seed=1)
    assert Counter(mixed) == {"new": 300, "old": 100}
    assert mixed != sorted(mixed)


def test_a_small_replay_set_is_used_whole_and_once() -> None:
    assert Counter(mix(["new"] * 300, ["old"] * 7, 0.5, seed=1)) == {"new": 300, "old": 7}
