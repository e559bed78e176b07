"""What is told to a person: commands to type, names and texts whatever is in them, numbers. Standard library only."""

import shlex
from collections.abc import Iterable


def command(args: Iterable[str]) -> str:
    """A command as a shell takes it: the words that have blanks, quotes or dollars in them are quoted."""
    return shlex.join(args)


def printable(text: str) -> str:
    """The text with every character that is not printable (line ends, ESC, zero-width, ...) escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """The text on one line, with nothing in it that a terminal would take for an order."""
    return printable(" ".join(text.split()))


def shortened(name: str, most: int) -> str:
    """The name in at most so many characters (3 or more), its middle left out: how it begins and ends tells most."""
    if len(name) <= most:
        return name
    n_first = (most - 1) // 2
    return f"{name[:n_first]}…{name[len(name) - (most - 1 - n_first) :]}"


def is_unicode(text: str) -> bool:
    """Whether files and libraries can hold the text. Bytes of a command line that are not UTF-8 are lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def format_count(n: float) -> str:
    """A count in at most four digits: ``950``, ``41.2k``, ``4.9M``."""
    if abs(n) < 999.5:
        return f"{n:.0f}"
    for suffix in "kMB":
        n /= 1000
        if abs(n) < 999.95:
            return f"{n:.1f}{suffix}"
    return f"{n / 1000:.1f}T"


def format_bytes(n: float) -> str:
    """Memory in two or three digits: ``950 B``, ``3.1 MB``, ``16 GB``, ``36 TB``."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB"):
        if abs(n) < 999.5:
            return f"{n:.2g} {unit}" if abs(n) < 9.95 else f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.3g} YB"


def format_duration(seconds: float) -> str:
    """A duration in its two largest units: ``8s``, ``1m40s``, ``2h05m``, ``3d04h``."""
    minutes, s = divmod(round(max(seconds, 0.0)), 60)
    if minutes == 0:
        return f"{s}s"
    hours, m = divmod(minutes, 60)
    if hours == 0:
        return f"{m}m{s:02}s"
    days, h = divmod(hours, 24)
    return f"{h}h{m:02}m" if days == 0 else f"{days}d{h:02}h"
