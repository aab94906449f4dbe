"""``python -m stockpot``."""

import sys

from stockpot.cli import main

if __name__ == "__main__":
    sys.exit(main())
