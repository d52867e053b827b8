"""`python -m gradellm` is the command line."""

import sys

from gradellm.cli import main

sys.exit(main())
