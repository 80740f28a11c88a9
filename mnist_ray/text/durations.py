"""Time spans in words and figures."""


def duration(seconds: float) -> str:
    """Returns a time span as 0:42 or 1:05:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
