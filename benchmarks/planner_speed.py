"""Speed of the planner on a 70B model with 1,024 GPUs, compared with llm-analysis.

    python benchmarks/planner_speed.py [--peer DIR] [--json OUT]

DIR holds the package llm-analysis, installed by `make .venv/peers` without its dependencies: it
pins other versions than this project, and needs none of them to estimate. Both estimators run in
this process, alternately, on one core. Without DIR the figures of llm-analysis are null.
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
    """Llama 70B on 128 nodes of 8 H100, with many values in every dimension."""
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
    estimate_by_peer = _llm_analysis(peer, space)
    sample = layouts[:: max(1, len(layouts) // _PEER_LAYOUTS)][:_PEER_LAYOUTS]
    plan_seconds, own_seconds, peer_seconds, ratios = [], [], [], []
    for _ in range(_TURNS):
        plan_seconds.append(_seconds(lambda: plan(space, model)))
        own_seconds.append(_seconds(lambda: model.estimate(layouts)) / len(layouts))
        if estimate_by_peer is not None:
            peer_seconds.append(_seconds(lambda: estimate_by_peer(sample)) / len(sample))
            ratios.append(peer_seconds[-1] / own_seconds[-1])
    results = {
        "layouts": len(layouts),
        "generate_estimate_and_rank_seconds": statistics.median(plan_seconds),
        "estimate_microseconds_per_layout": 1e6 * statistics.median(own_seconds),
        "llm_analysis_microseconds_per_layout": _median(peer_seconds, 1e6),
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
    """A function that estimates layouts with llm-analysis, in a loop; None without the package."""
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
        # llm-analysis accepts only multiples of hidden_dim; the value does not change its speed.
        ffn_embed_dim=4 * space.model.hidden_size,
        model_type="llama",
    )
    device = space.cluster.device
    gpu = config.GPUConfig(
        name="h100",
        mem_per_GPU_in_GB=1e6,  # unlimited, so that it also estimates layouts that do not fit
        hbm_bandwidth_in_GB_per_sec=device.memory_gb_per_second,
        intra_node_bandwidth_in_GB_per_sec=300,
        intra_node_min_message_latency=8e-6,
        peak_fp16_TFLOPS=device.peak_bf16_tflops,
    )

    def estimate(layouts: Sequence[Layout]) -> None:
        for layout in layouts:
            _estimate(analysis, config, model, gpu, space, layout)

    return estimate


def _estimate(
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
