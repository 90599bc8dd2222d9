"""`python -m bll_kernels`: what is installed, what it was built for, what serves each function."""

import sys

from bll_kernels.diagnostics import main

sys.exit(main())
