"""A plan on the screen: layouts by line, kernels folded in, reasons counted in layouts."""

import io
import re

import pytest
from rich.console import Console

from autotune.layout import DIMENSIONS
from autotune.named_spaces import load_space
from autotune.planning import plan
from autotune.report.plan import print_not_ranked, print_ranked
from autotune.space import SearchSpace


def printed(space: SearchSpace, top: int = 10, width: int = 140) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_ranked(console, plan(space), top)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_layouts_that_differ_in_kernels_only_share_a_line() -> None:
    space = load_space("llm13b")
    rows = [line for line in printed(space, top=40) if line.startswith(" tp")]
    assert len(rows) == 40
    own = [
        re.sub(r" (math|sdpa_flash|flash_attn) rmsnorm=\w+", "", row.partition("  ")[0])
        for row in rows
    ]
    assert len(set(own)) == 40
    ranked = plan(space)
    best = ranked.ranked[0]
    same = [
        layout
        for layout in ranked.ranked
        if all(
            getattr(layout, name) == getattr(best, name)
            for name, declared in DIMENSIONS.items()
            if not declared.is_implementation
        )
    ]
    assert f"{len(same) - 1}, up to +" in rows[0], "the others are counted"


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_cuts_no_word(width: int) -> None:
    space = load_space("llm13b")
    lines = printed(space, width=width)
    text = "\n".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text and max(map(len, lines[1:])) <= width
    shared = re.search(r"all: (.*)", " ".join(text.split()))
    assert shared is not None
    best = plan(space).ranked[0].describe()
    for word in best.split():
        assert word in text, "in its row, or among those that all share"


def test_reasons_take_at_most_eight_lines_and_add_up() -> None:
    reasons = {f"reason {number}": number for number in range(1, 21)}
    console = Console(file=io.StringIO(), width=140, highlight=False)
    print_not_ranked(console, reasons, "not ranked")
    assert isinstance(console.file, io.StringIO)
    head, *lines = console.file.getvalue().splitlines()
    assert head == "not ranked: 210 layouts, because" and len(lines) == 8
    assert sum(int(line.split()[0]) for line in lines) == 210
    assert lines[0].split() == ["20", "reason", "20"] and "13 other reasons" in lines[-1]


def test_every_layout_is_ranked_or_counted() -> None:
    space = load_space("llm13b")
    made = plan(space)
    dropped = sum(made.dropped.values())
    combinations = 1
    for name in (name for name, found in DIMENSIONS.items() if found.is_searched):
        combinations *= len(getattr(space, name))
    assert len(made.order) + dropped == combinations


def test_where_nothing_fits_the_number_of_nodes_that_is_needed_stands_in_the_tables_place() -> None:
    space = load_space("llm65b")
    small = space.replaced(
        {"cluster": type(space.cluster)(nodes=1, gpus_per_node=2, device=space.cluster.device)},
        what="cluster",
    )
    lines = printed(small)
    assert len(lines) == 2
    assert re.match(r"predicted: llm65b needs at least \d+ nodes of 2: on 1 node of 2", lines[1])
