"""What commands say on standard error about what they do meanwhile; tests/cli/test_silence.py is about it."""

_DOING = (
    "loading ",
    "reading ",
    "checking what run ",
    "training ",
    "evaluating ",
    "predicting images=",
    "drawing the report",
    "starting Ray ",
    "connecting to ",
    "submitting to ",
    "comparing ",
    "looking for what ",
    "looking in ",
    "querying ",
    "timing a few steps ",
)


def without_doing(text: str) -> str:
    """Returns the other lines of a text."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_DOING))
