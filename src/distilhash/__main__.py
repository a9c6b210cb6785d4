"""`python -m distilhash`: the command line."""

import sys

from distilhash.cli import main

sys.exit(main())
