"""`python -m minids` is the command `minids`."""

import sys

from minids.cli import main

sys.exit(main())
