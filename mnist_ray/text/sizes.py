"""Sizes in words and figures."""


def size_text(num_bytes: int) -> str:
    """Returns a number of bytes as 512 B, 1.5 kB, 34 MB or 1.2 GB, in powers of 1,000."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        # 999.6 would be shown as 1000.
        if size < 999.5 or unit == "TB":
            break
    return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"


def count_text(count: int, what: str) -> str:
    """Returns a count with its noun: 1 run, 2 runs."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def range_text(least: int, most: int, what: str) -> str:
    """Returns a range of counts with its noun: 8 to 12 runs, or 8 runs if both are equal."""
    return count_text(most, what) if least == most else f"{least:,} to {count_text(most, what)}"


def is_or_are(count: int, what: str) -> str:
    """Returns a count with its noun and verb: 1 run is, 2 runs are."""
    return f"{count_text(count, what)} {'is' if count == 1 else 'are'}"
