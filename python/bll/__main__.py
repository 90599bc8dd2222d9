"""``python -m bll``."""

from __future__ import annotations

import sys

from bll.cli import main

sys.exit(main())
