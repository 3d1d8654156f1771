"""Write the pictures of the docs that are predicted: `python docs/make_picture.py`.

docs/plan.svg is a terminal with a plan, docs/images/pipeline.svg (and .png) a step of a pipeline.
"""

import os
import sys
from pathlib import Path

from rich.console import Console

import autotune
from autotune.cost.model import CostModel
from autotune.layout import layout_from_mapping
from autotune.options.space_options import SpaceOptions, space_from_options
from autotune.pipeline.predicted import predicted_schedule
from autotune.report.charts import write_chart
from autotune.report.charts.pipeline import pipeline_chart
from autotune.report.plan import print_ranked

PICTURE = Path(__file__).with_name("plan.svg")
PIPELINE = Path(__file__).with_name("images") / "pipeline.svg"
# So that the numbers in the bars can be read on a phone, too.
_PIPELINE_WIDTH = 560


def main() -> int:
    """Write all of them."""
    draw_plan()
    draw_pipeline()
    return 0


def draw_pipeline() -> None:
    """Draw a step of four stages and eight micro-batches, which llm13b has with a small batch."""
    options = SpaceOptions(space="llm13b", nodes=8, global_batch_size=64)
    space = space_from_options(options)
    values = {"tensor_parallel": 2, "pipeline_parallel": 4, "data_parallel": 8}
    layout = layout_from_mapping(values, space.model)
    model = CostModel(space.model, space.precision, space.cluster)
    chart = pipeline_chart(
        predicted_schedule(model, layout), layout=layout.describe(), width=_PIPELINE_WIDTH
    )
    PIPELINE.parent.mkdir(exist_ok=True)
    for suffix in (".svg", ".png"):
        write_chart(chart, PIPELINE.with_suffix(suffix))


def draw_plan() -> None:
    """Print the plan of llm13b into a picture."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=136, file=nowhere, highlight=False)
        console.print("$ autotune plan --space llm13b --top 6")
        print_ranked(console, autotune.plan(autotune.load_space("llm13b")), 6)
        console.save_svg(str(PICTURE), title="autotune plan")


if __name__ == "__main__":
    sys.exit(main())
