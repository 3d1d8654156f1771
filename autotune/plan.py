"""`python -m autotune.plan`: predict the layouts of a space without running any."""

import sys
import types
from typing import Any

from autotune.commands.plan import main
from autotune.options.command_line import command_line


class _Module(types.ModuleType):
    """Whoever imports this module puts it where the function `autotune.plan` was: it is both."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from autotune.planning import plan

        return plan(*arguments, **options)


if __name__ == "__main__":
    sys.exit(command_line(main))
sys.modules[__name__].__class__ = _Module
