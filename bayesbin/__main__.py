"""``python -m bayesbin`` is the command ``bayesbin``."""

import sys

from bayesbin.cli import main

if __name__ == "__main__":
    sys.exit(main())
