"""`python -m autotune.calibrate`: fit the cost model to runs."""

import sys

from autotune.commands.calibrate import main
from autotune.options.command_line import command_line

if __name__ == "__main__":
    sys.exit(command_line(main))
