"""`python -m autotune.trace`: count a step of one layout without devices."""

import sys

from autotune.commands.trace import main
from autotune.options.command_line import command_line

if __name__ == "__main__":
    sys.exit(command_line(main))
