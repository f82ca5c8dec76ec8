"""Texts of others made fit for terminals, logs and messages: on one line, without control characters."""

from __future__ import annotations

import json


def printable(text: str, most: int | None = None) -> str:
    """Returns a text as one line that no terminal or log interprets.

    What is not printable (control characters, line ends, lone surrogates, marks that change the direction of
    writing) becomes a space, and several spaces become one.

    Args:
        text: the text.
        most: most characters; a longer text is cut and ends in three dots. None sets no limit.
    """
    # What is far beyond the limit need not be read: a client may have sent it.
    begun = text if most is None else text[: 20 * most]
    line = " ".join("".join(c if c.isprintable() else " " for c in begun).split())
    return line if most is None or len(line) <= most else line[: most - 3] + "..."


def printable_json(value: object) -> str:
    """Returns JSON on one line, in which what is not printable is escaped, so that nothing is lost."""
    line = json.dumps(value, ensure_ascii=False)
    return line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
