"""Color scales: their steps, and colors on which text is readable."""

import math

import pytest

from charjax.rendering.color_scale import DARK_BACKGROUND, DARK_INK, LIGHT_BACKGROUND, LIGHT_INK, Scale

SCALES = [Scale("surprise in bits", 0, 10, 20), Scale("activation", -1, 1, 21)]


@pytest.mark.parametrize("scale", SCALES)
def test_levels_rise_from_end_to_end(scale):
    for level in range(scale.levels):
        low, high = scale.bounds(level)
        assert scale.level((low + high) / 2) == level
    assert scale.level(-math.inf) == 0
    assert scale.level(math.inf) == scale.levels - 1
    assert scale.level(0.0) == scale.level(math.nan) == scale.neutral


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dark", [False, True])
def test_the_ink_can_be_read_on_every_color(scale, dark):
    """WCAG 2 requires a contrast of 4.5."""

    def luminance(color):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ink = luminance(DARK_INK if dark else LIGHT_INK)
    colors = [scale.color(level, dark=dark) for level in range(scale.levels)]
    for color in colors:
        low, high = sorted((ink, luminance(color)))
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert len(set(colors)) == scale.levels


@pytest.mark.parametrize("scale", SCALES)
def test_steps_on_any_background_differ_from_each_other_and_from_light_and_dark(scale):
    colors = [scale.color_on_any(level) for level in range(scale.levels)]
    colored = [color for color in colors if color is not None]
    assert colors[scale.neutral] is None
    assert len(set(colored)) == len(colored) >= 0.7 * scale.levels
    for color in colored:
        assert max(abs(part - other) for part, other in zip(color, LIGHT_BACKGROUND, strict=True)) > 60
        assert max(abs(part - other) for part, other in zip(color, DARK_BACKGROUND, strict=True)) > 60
