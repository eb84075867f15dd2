"""``python -m captum_fam.cli``, for launchers that start a module."""

import sys

from captum_fam.cli import main

if __name__ == "__main__":
    sys.exit(main())
