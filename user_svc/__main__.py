"""`python -m user_svc`: everything by environment."""

import sys

from contracts.runtime.process import run
from user_svc.app import main
from user_svc.crash_points import POINTS
from user_svc.settings import OTHERS, PREFIXES, Settings

if __name__ == "__main__":
    sys.exit(run("user_svc", Settings, main, prefixes=PREFIXES, known=OTHERS, crash_points=POINTS))
