"""`python -m wcord_fast ...` is the command `wcord-fast ...`."""

import sys

from wcord_fast.cli.main import main

sys.exit(main())
