"""Training runs that others published, on many devices and trainers: one row of a CSV file each.

The columns are those of `COLUMNS`; a row says its shapes, its layout, its cluster, and what was
published of it. Rows that a model, a layout or a trainer cannot say yet carry the reason.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

from autotune.calibration.rows import (
    field_of,
    flag_of,
    number_of,
    positive_of,
    whole_of,
)
from autotune.cluster import Cluster
from autotune.errors import InputError, in_field
from autotune.hardware import Network, device_named
from autotune.inputs import LARGEST_TABLE, opened, shown, validated
from autotune.layout import Layout, layout_from_mapping
from autotune.model import Model

# Phrases of `sharding_as_published`, and the trainer that they mean; the first that occurs counts.
_TRAINERS = (
    ("FSDP", "fsdp2"),
    ("fp32 gradients", "deepspeed_fp32_gradients"),
    ("DeepSpeed", "deepspeed"),
    ("PaddleNLP", "deepspeed"),
    ("NeMo", "nemo"),
    ("Megatron", "megatron"),
)
_OTHER_TRAINER = "megatron"
# Dtypes of the formulas: fp16 and bf16 have the same size and speed.
_DTYPES = ("bf16", "fp16")

# fmt: off
COLUMNS = (
    "id", "source", "hardware", "gpus", "gpus_per_node", "nodes",
    "layers", "hidden", "heads", "kv_heads", "ffn", "ffn_gated", "tied_embeddings", "vocab",
    "sequence_tokens", "global_batch_sequences", "micro_batch_sequences", "tp", "pp", "vp",
    "cp", "dp", "zero_stage",
    "sharding_as_published", "checkpointing", "sequence_parallel", "attention_kernel", "norm",
    "torch_compile", "dtype",
    "step_seconds", "peak_memory_gib", "memory_kind", "oom",
    "nvlink_gb_s_both_ways", "network_gbit_s_per_gpu", "device_memory_gib",
    "device_memory_gb_s",
    "status", "why_not", "doubt",
)
# fmt: on
"""Columns that are read; a file may have others."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What was trained, how and where."""

    model: Model
    layout: Layout
    cluster: Cluster
    trainer: str
    """A name of `autotune.cost.trainers`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """One published run."""

    id: str
    source: str
    """Who published it."""
    status: str
    """As the file has it: direct, stand-in, as-if, no."""
    doubtful: bool
    """Whether the file doubts what the figures mean."""
    training: Training | None
    """Null where it cannot be said."""
    why_not: str | None
    """Why it cannot be said; null where it can."""
    step_seconds: float | None
    peak_memory_gib: float | None
    memory_kind: str
    """How the memory was measured, as published."""
    ran_out_of_memory: bool

    @property
    def clean(self) -> bool:
        """Whether its step time judges predictions: nothing in it is replaced or doubted."""
        said = self.training is not None and self.status in ("direct", "stand-in")
        return said and not self.doubtful and self.step_seconds is not None


def read_published_runs(path: Path) -> list[PublishedRun]:
    """The runs of a CSV file. Raises InputError for the field `runs`."""
    with in_field("runs"):
        try:
            with opened(path, largest=LARGEST_TABLE) as content:
                reader = csv.DictReader(io.TextIOWrapper(content, "utf-8-sig", newline=""))
                names = reader.fieldnames or []
                if missing := [name for name in COLUMNS if name not in names]:
                    raise InputError(f"{shown(path)}: column {missing[0]} is missing")
                rows = [{**row, "where": f"{path.name}, line {reader.line_num}"} for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"cannot read {shown(path)}: {error}") from None
        if not rows:
            raise InputError(f"no run in {shown(path)}")
        return [_run(row) for row in rows]


def _run(row: Mapping[str, str]) -> PublishedRun:
    training, why_not = None, row["why_not"] or None
    if row["status"] == "no":
        why_not = why_not or "the file says that it cannot be said"
    else:
        try:
            training = _training(row)
        except InputError as error:
            why_not = str(error)
    return PublishedRun(
        id=field_of(row, "id", row["where"]),
        source=row["source"],
        status=row["status"],
        doubtful=bool(row["doubt"]),
        training=training,
        why_not=None if training else why_not,
        step_seconds=positive_of(row, "step_seconds") if row["step_seconds"] else None,
        peak_memory_gib=positive_of(row, "peak_memory_gib") if row["peak_memory_gib"] else None,
        memory_kind=row["memory_kind"],
        ran_out_of_memory=bool(row["oom"]) and flag_of(row, "oom"),
    )


def _training(row: Mapping[str, str]) -> Training:
    """Raises InputError for what models, layouts and devices cannot say."""
    if row["dtype"] not in _DTYPES:
        raise InputError(f"dtype must be {' or '.join(_DTYPES)}, got {shown(row['dtype'])}")
    model = validated(
        Model,
        {
            "num_hidden_layers": number_of(row, "layers"),
            "hidden_size": number_of(row, "hidden"),
            "intermediate_size": number_of(row, "ffn"),
            "num_attention_heads": number_of(row, "heads"),
            "num_key_value_heads": number_of(row, "kv_heads"),
            "vocab_size": number_of(row, "vocab"),
            "sequence_length": number_of(row, "sequence_tokens"),
            "global_batch_size": number_of(row, "global_batch_sequences"),
            "gated_feed_forward": flag_of(row, "ffn_gated"),
            "tie_word_embeddings": flag_of(row, "tied_embeddings"),
            "precision": "bf16",
        },
        what=row["where"],
    )
    layout = layout_from_mapping(
        {
            "tensor_parallel": number_of(row, "tp"),
            "pipeline_parallel": number_of(row, "pp"),
            # Context-parallel ranks (rows "as-if") count as replicas with other sequences.
            "data_parallel": number_of(row, "dp") * number_of(row, "cp"),
            "zero_stage": whole_of(row, "zero_stage", 3),
            "micro_batch_size": number_of(row, "micro_batch_sequences"),
            "activation_checkpointing": row["checkpointing"],
            "sequence_parallel": flag_of(row, "sequence_parallel"),
            "attention_kernel": row["attention_kernel"],
            "rmsnorm_kernel": row["norm"],
            "torch_compile": flag_of(row, "torch_compile"),
        },
        model,
        what=row["where"],
    )
    return Training(model=model, layout=layout, cluster=_cluster(row), trainer=_trainer(row))


def _cluster(row: Mapping[str, str]) -> Cluster:
    device = device_named(field_of(row, "hardware", row["where"]))
    if row["device_memory_gb_s"]:
        bandwidth = positive_of(row, "device_memory_gb_s")
        device = dataclasses.replace(device, memory_gb_per_second=bandwidth)
    if row["device_memory_gib"]:
        device = dataclasses.replace(device, memory_gib=positive_of(row, "device_memory_gib"))
    fields = {
        "nodes": number_of(row, "nodes"),
        "gpus_per_node": number_of(row, "gpus_per_node"),
        "device": device,
    }
    cluster = validated(Cluster, fields, what=row["where"])
    return dataclasses.replace(cluster, network=_network(row, cluster.links))


def _network(row: Mapping[str, str], usual: Network) -> Network:
    """The usual network with the bandwidths that the row has."""
    link, card = row["nvlink_gb_s_both_ways"], row["network_gbit_s_per_gpu"]
    network = usual
    if link:
        one_way = positive_of(row, "nvlink_gb_s_both_ways") / 2
        network = dataclasses.replace(network, link_gb_per_second=one_way)
    if card:
        network = dataclasses.replace(
            network,
            nic_gbit_per_second=positive_of(row, "network_gbit_s_per_gpu"),
            nics_per_node=None,
            oversubscription=1.0,
        )
    return network


def _trainer(row: Mapping[str, str]) -> str:
    text = f"{row['sharding_as_published']} {row['source']}"
    return next((name for phrase, name in _TRAINERS if phrase in text), _OTHER_TRAINER)
