"""Which colour a number is painted in, on a page and in a terminal."""

import math
from typing import NamedTuple

Colour = tuple[int, int, int]

LIGHT_BACKGROUND, LIGHT_INK = (255, 255, 255), (17, 17, 17)
DARK_BACKGROUND, DARK_INK = (22, 22, 26), (240, 240, 240)
# Of one hue each, ever farther from the background, for eyes that see few colours; the ink stays readable on all.
_WARM_ON_LIGHT, _WARM_ON_DARK = ((255, 211, 140), (240, 110, 60)), ((100, 47, 14), (186, 70, 12))
_COLD_ON_LIGHT, _COLD_ON_DARK = ((182, 214, 255), (96, 160, 250)), ((22, 56, 110), (36, 98, 190))
# Of the way from 0 to the end, where nothing is painted in a terminal.
_UNPAINTED_SHARE = 0.2


class Scale(NamedTuple):
    """Numbers from `low` to `high` in `levels` steps of equal width; what lies beyond takes the last step.

    With 0 at the low end, colours grow from none to warm; with 0 in the middle, from cold over none to warm.

    Attributes:
        name: what the numbers are, with their unit, for the legend.
        low: the least, 0 or -high.
        high: the largest.
        levels: number of steps, at most 26, odd where low is negative.
    """

    name: str
    low: float
    high: float
    levels: int

    @property
    def neutral(self) -> int:
        """The step that 0 is in, which has no colour."""
        return self.levels // 2 if self.low < 0 else 0

    def level(self, value: float) -> int:
        """The step of a number; NaN, of which nothing is known, is neutral."""
        if math.isnan(value):
            return self.neutral
        share = (value - self.low) / (self.high - self.low)
        return int(min(max(share, 0.0) * self.levels, self.levels - 1))

    def bounds(self, level: int) -> tuple[float, float]:
        """The numbers that a step begins and ends at."""
        width = (self.high - self.low) / self.levels
        return self.low + level * width, self.low + (level + 1) * width

    def colour(self, level: int, *, dark: bool) -> Colour:
        """The background that a step is painted in, on a dark page or on a light one."""
        background = DARK_BACKGROUND if dark else LIGHT_BACKGROUND
        if level >= self.neutral:
            middle, end = _WARM_ON_DARK if dark else _WARM_ON_LIGHT
        else:
            middle, end = _COLD_ON_DARK if dark else _COLD_ON_LIGHT
        share = self._share(level)
        return _mix(background, middle, 2 * share) if share < 0.5 else _mix(middle, end, 2 * share - 1)

    def colour_on_any(self, level: int) -> Colour | None:
        """The background that a step is painted in where nobody knows whether it is light or dark around; for dark ink.

        Whatever is nearly that of a light page would stand out on a dark one: steps near 0 have none, the others begin
        with a colour that can be told from both.
        """
        share = self._share(level)
        if share < _UNPAINTED_SHARE:
            return None
        middle, end = _WARM_ON_LIGHT if level >= self.neutral else _COLD_ON_LIGHT
        return _mix(middle, end, (share - _UNPAINTED_SHARE) / (1 - _UNPAINTED_SHARE))

    def _share(self, level: int) -> float:
        """How far a step is from 0, of all the way to the last."""
        return abs(level - self.neutral) / max(self.levels - 1 - self.neutral, 1)


def _mix(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue
