"""``python -m stockpot``, and the program ``stockpot``."""

import signal
import sys


def program() -> int:
    """Load the command line and run it; while it loads, Ctrl-C ends the process at once (see ``cli._signals``)."""
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from stockpot.cli import main

    signal.signal(signal.SIGINT, previous)
    return main()


if __name__ == "__main__":
    sys.exit(program())
