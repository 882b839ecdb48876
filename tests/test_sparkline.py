"""The curve in one line: one character a value or run of values, lowest to highest, whatever the values are."""

import math

from hypothesis import given
from hypothesis import strategies as st

from trainer_core.console.sparkline import ASCII_LEVELS, BLOCKS, Trend, sparkline

finite = st.floats(min_value=-1e12, max_value=1e12)
anything = st.lists(st.floats(), max_size=200)


@given(anything, st.integers(0, 60), st.sampled_from([BLOCKS, ASCII_LEVELS]))
def test_it_has_a_character_a_value_up_to_its_width_and_none_but_levels_and_blanks(values, width, levels):
    curve = sparkline(values, width, levels=levels)
    assert len(curve) == min(len(values), width)
    assert set(curve) <= {*levels, " "}


@given(st.lists(finite, min_size=2, max_size=60).filter(lambda values: min(values) < max(values)))
def test_the_lowest_value_has_the_lowest_level_the_highest_the_highest_and_order_is_kept(values):
    levels = [BLOCKS.index(char) for char in sparkline(values, 60)]
    assert levels[values.index(min(values))] == 0
    assert levels[values.index(max(values))] == 7
    ordered = [level for _, level in sorted(zip(values, levels, strict=True), key=lambda pair: pair[0])]
    assert ordered == sorted(ordered)


def test_a_fall_is_shown_as_a_fall_in_blocks_and_in_ascii():
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], levels=ASCII_LEVELS) == "#*+=:-._"


def test_neighbours_are_put_together_where_there_are_more_values_than_characters():
    assert sparkline([0, 2, 7, 7, 14, 14, 14, 14], 4) == "▁▄██"


def test_values_that_are_not_finite_are_blanks_and_do_not_stretch_the_scale():
    assert sparkline([1.0, math.nan, 2.0, math.inf, 3.0]) == "▁ ▅ █"
    assert sparkline([math.nan, math.nan]) == "  "


def test_equal_values_are_a_flat_line():
    assert sparkline([3.0] * 4) == "▁▁▁▁"


@given(st.lists(finite, max_size=500), st.integers(2, 20))
def test_a_trend_keeps_at_most_two_means_a_character(values, width):
    trend = Trend(width)
    trend.extend(values)
    assert len(trend._means) < 2 * width
    assert len(trend.curve()) <= width


def test_a_long_trend_looks_like_the_sparkline_of_all_its_values():
    values = [1000.0 / (1 + step) for step in range(1024)]
    trend = Trend(8)
    trend.extend(values)
    assert trend.curve() == sparkline(values, 8)
