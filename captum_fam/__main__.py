"""``python -m captum_fam``, for launchers that start a module, as torchrun does."""

import sys

from captum_fam.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
