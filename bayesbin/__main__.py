"""``python -m bayesbin`` is the command ``bayesbin``."""

import sys

from bayesbin.experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
