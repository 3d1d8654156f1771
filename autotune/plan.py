"""`python -m autotune.plan`: predict the layouts of a space without running any."""

import sys

from autotune.commands.plan import main
from autotune.options.command_line import command_line

if __name__ == "__main__":
    sys.exit(command_line(main))
