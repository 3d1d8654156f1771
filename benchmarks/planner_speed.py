"""How fast the planner is: the whole space of a 70B model on 1,024 GPUs, beside llm-analysis.

    python benchmarks/planner_speed.py [--peer DIR] [--json OUT]

DIR holds the package llm-analysis as `make .venv/peers` puts it there: it wants other versions of
its dependencies than we have, and needs none of them to estimate. Both estimate in this process, in
turns, on one core. Where DIR is missing its figures are null.
"""

import contextlib
import io
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from autotune.cluster import Cluster
from autotune.cost.model import CostModel
from autotune.hardware import device_named
from autotune.layout import Layout
from autotune.model import Model
from autotune.options.command_line import command_line
from autotune.planning import plan
from autotune.space import SearchSpace

_TURNS = 5
_WIDTH = 110
_PEER_LAYOUTS = 200
_PEER_CHECKPOINTING = {"none": "NONE", "selective": "SELECTIVE", "full": "FULL"}


def space_of_70b() -> SearchSpace:
    """Llama 70B on 128 nodes of 8 H100: every legal layout of generous dimensions."""
    return SearchSpace(
        name="70B on 1,024 GPUs",
        model=Model(
            num_hidden_layers=80,
            hidden_size=8192,
            intermediate_size=28_672,
            num_attention_heads=64,
            num_key_value_heads=8,
            vocab_size=128_256,
            sequence_length=4096,
            global_batch_size=4096,
        ),
        cluster=Cluster(nodes=128, gpus_per_node=8, device=device_named("h100")),
        tensor_parallel=(1, 2, 4, 8),
        pipeline_parallel=(1, 2, 4, 8, 16, 32, 64),
        micro_batch_size=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        torch_compile=(False, True),
    )


@click.command()
@click.option("--peer", type=click.Path(path_type=Path), default=".venv/peers", metavar="DIR")
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(peer: Path, out: Path | None) -> int:
    """Time the planner against llm-analysis."""
    space = space_of_70b()
    layouts = space.layouts()
    model = CostModel(space.model, space.precision, space.cluster)
    theirs = _llm_analysis(peer, space)
    some = layouts[:: max(1, len(layouts) // _PEER_LAYOUTS)][:_PEER_LAYOUTS]
    whole, ours_each, theirs_each, ratios = [], [], [], []
    for _ in range(_TURNS):
        whole.append(_seconds(lambda: plan(space, model)))
        ours_each.append(_seconds(lambda: model.estimate(layouts)) / len(layouts))
        if theirs is not None:
            theirs_each.append(_seconds(lambda: theirs(some)) / len(some))
            ratios.append(theirs_each[-1] / ours_each[-1])
    results = {
        "layouts": len(layouts),
        "generate_estimate_and_rank_seconds": statistics.median(whole),
        "estimate_microseconds_per_layout": 1e6 * statistics.median(ours_each),
        "llm_analysis_microseconds_per_layout": _median(theirs_each, 1e6),
        "llm_analysis_over_ours": _median(ratios, 1.0),
    }
    table = Table(title=f"{space.name}, medians of {_TURNS} turns")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in results.items():
        table.add_row(name.replace("_", " "), "not installed" if value is None else f"{value:,.3g}")
    Console(width=_WIDTH).print(table)
    if out is not None:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def _llm_analysis(peer: Path, space: SearchSpace) -> Callable[[Sequence[Layout]], None] | None:
    """What estimates layouts with llm-analysis, one after the other; None without the package."""
    if not (peer / "llm_analysis").is_dir():
        return None
    sys.path.append(str(peer.resolve()))
    with contextlib.redirect_stderr(io.StringIO()):
        from llm_analysis import analysis, config

    logging.getLogger("llm_analysis").setLevel(logging.CRITICAL)
    logging.disable(logging.WARNING)
    model = config.ModelConfig(
        name="70B",
        num_layers=space.model.num_hidden_layers,
        n_head=space.model.num_attention_heads,
        hidden_dim=space.model.hidden_size,
        vocab_size=space.model.vocab_size,
        max_seq_len=space.model.sequence_length,
        num_key_value_heads=space.model.num_key_value_heads,
        # It takes only multiples of the width; the time of an estimate does not depend on it.
        ffn_embed_dim=4 * space.model.hidden_size,
        model_type="llama",
    )
    device = space.cluster.device
    gpu = config.GPUConfig(
        name="h100",
        mem_per_GPU_in_GB=1e6,  # so that it estimates what does not fit, too
        hbm_bandwidth_in_GB_per_sec=device.memory_gb_per_second,
        intra_node_bandwidth_in_GB_per_sec=300,
        intra_node_min_message_latency=8e-6,
        peak_fp16_TFLOPS=device.peak_bf16_tflops,
    )

    def estimate(layouts: Sequence[Layout]) -> None:
        for layout in layouts:
            _estimate_one(analysis, config, model, gpu, space, layout)

    return estimate


def _estimate_one(
    analysis: Any, config: Any, model: Any, gpu: Any, space: SearchSpace, layout: Layout
) -> None:
    parallel = config.ParallelismConfig(
        tp_size=layout.tensor_parallel,
        pp_size=layout.pipeline_parallel,
        dp_size=layout.data_parallel,
        sp_size=layout.tensor_parallel if layout.sequence_parallel else 1,
    )
    estimator = analysis.LLMAnalysis(
        model, gpu, parallelism_config=parallel, flops_efficiency=0.5, hbm_memory_efficiency=0.9
    )
    recomputation = _PEER_CHECKPOINTING[layout.activation_checkpointing]
    estimator.training(
        batch_size_per_gpu=layout.micro_batch_size,
        gradient_accumulation_steps=layout.gradient_accumulation_steps,
        global_batch_size=space.model.global_batch_size,
        seq_len=space.model.sequence_length,
        activation_recomputation=analysis.ActivationRecomputation[recomputation],
        ds_zero=analysis.DSZeRO(layout.zero_stage),
        mlp_gated_linear_units=True,
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median(values: Sequence[float], scale: float) -> float | None:
    return scale * statistics.median(values) if values else None


if __name__ == "__main__":
    sys.exit(command_line(main))
