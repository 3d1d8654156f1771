"""`python -m autotune.run`: search a space for the layout that trains fastest."""

import sys

from autotune.commands.run import main
from autotune.options.command_line import command_line

if __name__ == "__main__":
    sys.exit(command_line(main))
