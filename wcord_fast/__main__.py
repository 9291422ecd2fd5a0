"""`python -m wcord_fast ...` is the command `wcord-fast ...`."""

import sys

from wcord_fast.command import main

sys.exit(main())
