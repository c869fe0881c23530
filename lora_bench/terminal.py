"""Words for a terminal that may not know all our letters."""

import io
import sys


def spell_out() -> None:
    """Have a character that the terminal's encoding lacks written as its escape, where it would end the command.

    `±`, `−` and `·` stand in most tables; under LC_ALL=C none can be written, nor the name of a folder with an umlaut.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
