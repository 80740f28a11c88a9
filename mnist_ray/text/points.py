"""Fractions in points."""


def points_text(fraction: float) -> str:
    """Returns a fraction as `0.5 points` or `1 point`."""
    points = 100 * fraction
    return "1 point" if f"{points:g}" == "1" else f"{points:g} points"
