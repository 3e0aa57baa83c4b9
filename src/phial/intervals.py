"""How far a measured share may be from the true one."""

from __future__ import annotations

from math import sqrt

Z = 1.959963984540054  # two-sided 95 %


def wilson(successes: float, trials: int, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval (1927): every p for which |share - p| <= z sqrt(p (1 - p) / trials).

    (0, 1) where nothing was tried. It holds near 0 and 1 too, where share ± z errors leaves the range.
    """
    if not trials:
        return 0.0, 1.0
    p, z2 = successes / trials, z * z
    middle, half = p + z2 / (2 * trials), z * sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    low, high = (middle - half) / (1 + z2 / trials), (middle + half) / (1 + z2 / trials)
    return 0.0 if successes == 0 else max(low, 0.0), 1.0 if successes == trials else min(high, 1.0)
