"""Maps numbers to background colors, for pages and terminals."""

import math
from typing import NamedTuple

RGB = tuple[int, int, int]

LIGHT_BACKGROUND, LIGHT_INK = (255, 255, 255), (17, 17, 17)
DARK_BACKGROUND, DARK_INK = (22, 22, 26), (240, 240, 240)
# One hue per sign, increasingly far from the background, for color-blind readers; the ink is readable on every color.
_WARM_ON_LIGHT, _WARM_ON_DARK = ((255, 211, 140), (240, 110, 60)), ((100, 47, 14), (186, 70, 12))
_COLD_ON_LIGHT, _COLD_ON_DARK = ((182, 214, 255), (96, 160, 250)), ((22, 56, 110), (36, 98, 190))
# Values closer to 0 than this fraction of the largest value stay uncolored in a terminal.
_UNCOLORED_FRACTION = 0.2


class Scale(NamedTuple):
    """A color scale from `low` to `high` in `levels` equal steps.

    Values outside this range fall into the first or last step. With 0 at the low end, the steps go from uncolored to
    warm; with 0 in the middle, from cold through uncolored to warm.

    Attributes:
        name: quantity and unit, for the legend.
        low: smallest value, 0 or -high.
        high: largest value.
        levels: number of steps, at most 26, odd if low is negative.
    """

    name: str
    low: float
    high: float
    levels: int

    @property
    def neutral(self) -> int:
        """The step that contains 0, which has no color."""
        return self.levels // 2 if self.low < 0 else 0

    def level(self, value: float) -> int:
        """Returns the step that a number falls into; NaN, which stands for an unknown value, is neutral."""
        if math.isnan(value):
            return self.neutral
        fraction = (value - self.low) / (self.high - self.low)
        return int(min(max(fraction, 0.0) * self.levels, self.levels - 1))

    def bounds(self, level: int) -> tuple[float, float]:
        """Returns the smallest and largest number in a step."""
        width = (self.high - self.low) / self.levels
        return self.low + level * width, self.low + (level + 1) * width

    def color(self, level: int, *, dark: bool) -> RGB:
        """Returns the background color for a step on a light or dark page."""
        background = DARK_BACKGROUND if dark else LIGHT_BACKGROUND
        if level >= self.neutral:
            middle, end = _WARM_ON_DARK if dark else _WARM_ON_LIGHT
        else:
            middle, end = _COLD_ON_DARK if dark else _COLD_ON_LIGHT
        fraction = self._fraction(level)
        return _mix(background, middle, 2 * fraction) if fraction < 0.5 else _mix(middle, end, 2 * fraction - 1)

    def color_on_any(self, level: int) -> RGB | None:
        """Returns the background color for a step, under dark ink, on a terminal that may be light or dark.

        A color close to a light background would stand out on a dark one, so steps near 0 have no color and the others
        begin with a color that differs from both.
        """
        fraction = self._fraction(level)
        if fraction < _UNCOLORED_FRACTION:
            return None
        middle, end = _WARM_ON_LIGHT if level >= self.neutral else _COLD_ON_LIGHT
        return _mix(middle, end, (fraction - _UNCOLORED_FRACTION) / (1 - _UNCOLORED_FRACTION))

    def _fraction(self, level: int) -> float:
        """Returns the distance of a step from 0, as a fraction of the largest distance."""
        return abs(level - self.neutral) / max(self.levels - 1 - self.neutral, 1)


def _mix(start: RGB, end: RGB, fraction: float) -> RGB:
    red, green, blue = (round(a + (b - a) * fraction) for a, b in zip(start, end, strict=True))
    return red, green, blue
