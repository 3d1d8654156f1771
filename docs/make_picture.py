"""Write docs/plan.svg, a terminal with a predicted plan: `python docs/make_picture.py`."""

import os
import sys
from pathlib import Path

from rich.console import Console

import autotune
from autotune.report.plan import print_ranked

PICTURE = Path(__file__).with_name("plan.svg")


def main() -> int:
    """Print the plan of llm13b into a picture."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=136, file=nowhere, highlight=False)
        console.print("$ autotune plan --space llm13b --top 6")
        print_ranked(console, autotune.plan(autotune.load_space("llm13b")), 6)
        console.save_svg(str(PICTURE), title="autotune plan")
    return 0


if __name__ == "__main__":
    sys.exit(main())
