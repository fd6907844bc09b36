"""`python -m octavo` is `octavo`."""

from __future__ import annotations

import sys

from octavo.cli.main import main

sys.exit(main())
