"""``python -m medvlp_core.cli`` is ``medvlp``."""

import sys

from medvlp_core.cli import main

sys.exit(main())
