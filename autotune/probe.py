"""`python -m autotune.probe`: measure devices and network of the nodes at hand."""

import sys

from autotune.commands.probe import main
from autotune.options.command_line import command_line

if __name__ == "__main__":
    sys.exit(command_line(main))
