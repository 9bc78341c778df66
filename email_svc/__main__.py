"""`python -m email_svc`: everything by environment."""

import sys

from contracts.runtime.process import run
from email_svc.crash_points import POINTS
from email_svc.main import main
from email_svc.settings import OTHERS, PREFIXES, Settings

if __name__ == "__main__":
    sys.exit(run("email_svc", Settings, main, prefixes=PREFIXES, known=OTHERS, crash_points=POINTS))
