"""`python -m lm` is `char-lm`."""

import sys

from lm.cli import main

sys.exit(main())
