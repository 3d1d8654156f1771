"""Layouts that teams published for their trainings: are they legal here, and where are they ranked?

    python benchmarks/published_choices.py [--json OUT]

Each is planned among all layouts of its model on its cluster by the trainer that is nearest to the
one that was used. Predicted throughput stands beside the published one.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from autotune.cluster import Cluster
from autotune.cost.model import CostModel
from autotune.hardware import device_named
from autotune.layout import Layout
from autotune.model import Model
from autotune.options.command_line import command_line
from autotune.planning import plan
from autotune.space import SearchSpace

_WIDTH = 140
_NARAYANAN = "Narayanan et al. 2021 (arXiv 2104.04473), table 1"
_LLAMA_3 = "Llama 3 (arXiv 2407.21783), table 4"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A published layout and what it reached."""

    name: str
    source: str
    model: Model
    nodes: int
    device: str
    tensor_parallel: int
    pipeline_parallel: int
    micro_batch_size: int
    activation_checkpointing: str
    attention_kernel: str
    sequence_parallel: bool
    zero_stage: int
    published_tflops: float
    """Model TFLOP/s per GPU as the source counts them."""
    flops_per_token: float
    """The same count, per token."""


def _gpt(hidden: int, layers: int, heads: int, batch: int) -> tuple[Model, float]:
    """A GPT of Narayanan et al., and their FLOPs per token (section 3, recomputation included)."""
    length, vocabulary = 2048, 51_200
    model = Model(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        sequence_length=length,
        global_batch_size=batch,
        gated_feed_forward=False,
        activation="gelu",
        tie_word_embeddings=True,
        norm="layernorm",
        qkv_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        positions="learned",
        max_position_embeddings=length,
        precision="bf16",
    )
    share = 1 + length / (6 * hidden) + vocabulary / (16 * layers * hidden)
    return model, 96 * layers * hidden**2 * share


def choices() -> list[Choice]:
    """The published layouts."""
    found = []
    for size, hidden, layers, heads, tensor, stages, gpus, batch, micro, tflops in (
        ("1.7B", 2304, 24, 24, 1, 1, 32, 512, 16, 137),
        ("3.6B", 3072, 30, 32, 2, 1, 64, 512, 8, 138),
        ("7.5B", 4096, 36, 32, 4, 1, 128, 512, 4, 142),
        ("18.4B", 6144, 40, 48, 8, 1, 256, 1024, 4, 135),
        ("39.1B", 8192, 48, 64, 8, 2, 512, 1536, 4, 138),
        ("76.1B", 10_240, 60, 80, 8, 4, 1024, 1792, 2, 140),
        ("145.6B", 12_288, 80, 96, 8, 8, 1536, 2304, 2, 148),
        ("310.1B", 16_384, 96, 128, 8, 16, 1920, 2160, 1, 155),
        ("529.6B", 20_480, 105, 128, 8, 35, 2520, 2520, 1, 163),
        ("1008B", 25_600, 128, 160, 8, 64, 3072, 3072, 1, 163),
    ):
        model, flops = _gpt(hidden, layers, heads, batch)
        found.append(
            Choice(
                name=f"GPT {size}, {gpus} A100",
                source=_NARAYANAN,
                model=model,
                nodes=gpus // 8,
                device="a100-80gb",
                tensor_parallel=tensor,
                pipeline_parallel=stages,
                micro_batch_size=micro,
                activation_checkpointing="full",
                attention_kernel="megatron",
                sequence_parallel=False,
                zero_stage=0,
                published_tflops=tflops,
                flops_per_token=flops,
            )
        )
    for gpus, batch, tflops in ((8192, 2048, 430), (16_384, 2048, 400)):
        llama = Model(
            num_hidden_layers=126,
            hidden_size=16_384,
            intermediate_size=53_248,
            num_attention_heads=128,
            num_key_value_heads=8,
            vocab_size=128_256,
            sequence_length=8192,
            global_batch_size=batch,
            precision="bf16",
        )
        found.append(
            Choice(
                name=f"Llama 3 405B, {gpus} H100",
                source=_LLAMA_3,
                model=llama,
                nodes=gpus // 8,
                device="h100",
                tensor_parallel=8,
                pipeline_parallel=16,
                micro_batch_size=1,
                activation_checkpointing="none",
                attention_kernel="sdpa_cudnn",
                sequence_parallel=True,
                zero_stage=1,
                published_tflops=tflops,
                flops_per_token=llama.model_flops_per_token,
            )
        )
    return found


def judge(choice: Choice) -> dict[str, Any]:
    """Whether the layout is legal, its predicted throughput, and its place among all layouts."""
    cluster = Cluster(nodes=choice.nodes, gpus_per_node=8, device=device_named(choice.device))
    stages = {1, 2, 4, 8, 16, 32, 64, choice.pipeline_parallel}
    space = SearchSpace(
        name="published",
        model=choice.model,
        cluster=_with_kernel(cluster, choice.attention_kernel),
        pipeline_parallel=tuple(sorted(s for s in stages if s <= choice.model.num_hidden_layers)),
        zero_stage=(choice.zero_stage or 1,),
        micro_batch_size=(1, 2, 4, 8, 16),
        attention_kernel=(choice.attention_kernel,),
        rmsnorm_kernel=("fused",),
    )
    replicas = cluster.devices // (choice.tensor_parallel * choice.pipeline_parallel)
    layout = Layout(
        tensor_parallel=choice.tensor_parallel,
        pipeline_parallel=choice.pipeline_parallel,
        data_parallel=replicas,
        zero_stage=choice.zero_stage or 1,
        micro_batch_size=choice.micro_batch_size,
        gradient_accumulation_steps=choice.model.global_batch_size
        // (replicas * choice.micro_batch_size),
        activation_checkpointing=choice.activation_checkpointing,  # type: ignore[arg-type]
        sequence_parallel=choice.sequence_parallel,
        attention_kernel=choice.attention_kernel,  # type: ignore[arg-type]
    )
    model = CostModel(space.model, space.precision, space.cluster, trainer="megatron")
    found = plan(space, model)
    legal = layout in found.layouts
    estimates = model.estimate([layout])
    seconds = float(estimates.step_seconds[0])
    flops = choice.flops_per_token * choice.model.tokens_per_step
    best = found.estimates.step_seconds[found.order[0]]
    return {
        "name": choice.name,
        "source": choice.source,
        "layout": layout.describe(),
        "legal": legal,
        "published_tflops": choice.published_tflops,
        "predicted_tflops": flops / seconds / cluster.devices / 1e12,
        "fit_probability": float(estimates.fit_probability[0]),
        "rank": found.ranked.index(layout) + 1 if layout in found.ranked else None,
        "ranked": len(found.order),
        "predicted_best": found.ranked[0].describe(),
        "predicted_best_over_it": float(best) / seconds,
    }


def _with_kernel(cluster: Cluster, kernel: str) -> Cluster:
    """The cluster whose device also has a kernel of its time."""
    kernels = tuple(dict.fromkeys((*cluster.device.attention_kernels, kernel)))
    device = dataclasses.replace(cluster.device, attention_kernels=kernels)  # type: ignore[arg-type]
    return dataclasses.replace(cluster, device=device)


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(out: Path | None) -> int:
    """Print where published layouts are ranked."""
    console = Console(width=_WIDTH)
    rows = [
        judge(choice) for choice in track(choices(), console=Console(stderr=True), transient=True)
    ]
    table = Table(title="Published layouts among all of their model and cluster, predicted")
    for heading in ("training", "layout"):
        table.add_column(heading)
    for heading in ("published TFLOP/s", "predicted", "fits", "rank", "best takes"):
        table.add_column(heading, justify="right")
    table.add_column("predicted best")
    for row in rows:
        place = "-" if row["rank"] is None else f"{row['rank']} of {row['ranked']}"
        table.add_row(
            row["name"],
            row["layout"].partition(" ckpt")[0],
            f"{row['published_tflops']:g}",
            f"{row['predicted_tflops']:.0f}",
            f"{row['fit_probability']:.0%}",
            place,
            f"{row['predicted_best_over_it']:.0%}",
            row["predicted_best"].partition(" megatron")[0].partition(" sdpa")[0],
        )
    console.print(table)
    console.print(
        "'Best takes': predicted step time of the predicted best over the published one's."
    )
    if out is not None:
        out.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(command_line(main))
