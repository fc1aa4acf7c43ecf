"""`python -m rpmsgx`."""

import sys

from rpmsgx.cli import main

if __name__ == "__main__":
    sys.exit(main())
