"""The shapes and layouts to measure: a centre point, one factor at a time, corners, and edge rows.

Edge rows are near the memory capacity. Each edge shape has two rows: one with the most layers that
the cost model predicts to fit, and one with a layer more.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from autotune.cluster import Cluster
from autotune.cost.model import CostModel
from autotune.hardware import Device
from autotune.layout import Layout, layout_from_mapping
from autotune.model import Model
from autotune.space import precision_on
from autotune.trial.deepspeed_config import POINTWISE_SWITCH
from trainables.probe.sizes import WIDTHS

_MOST_LAYERS = 8
_SHARE_AWAY_FROM_THE_EDGE = 0.7
_CENTRE = {"width": "13b", "vocab_size": 32_000, "sequence_length": 4096, "micro_batch_size": 4}
_SMALL_CENTRE = {"width": "small", "vocab_size": 512, "sequence_length": 64, "micro_batch_size": 4}
_COMPILED_PAIRS = (0, 3)
_EAGER: Mapping[str, str] = MappingProxyType({POINTWISE_SWITCH: "eager"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One shape in one layout on one device."""

    name: str
    """Unique; names the difference from the centre."""
    group: str
    """centre, factor, corner, edge, again or cross."""
    model: Model
    layout: Layout
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Extra environment variables for the rank."""


Contender = tuple[str, Row | None]
"""Name, and a row of this worker; None: the baseline of `peers` with that name."""


class Planner:
    """Plans the rows for one device. Its memory determines the number of layers of a row."""

    def __init__(self, device: Device, memory_gib: float | None = None) -> None:
        """`memory_gib`: memory limit of the rank; None: the memory of the device."""
        self._cluster = Cluster(nodes=1, gpus_per_node=1, device=device, memory_gib=memory_gib)
        self.precision = precision_on(device.kind)
        self.kernels = device.attention_kernels

    def rows(self, *, full: bool = False) -> list[Row]:
        """The rows of a GPU, most informative first; `full`: the full factorial design."""
        if full:
            return list(self._cross())
        rows = [self._row("centre", "centre", _CENTRE)]
        rows += [self._row(name, "factor", _CENTRE, change) for name, change in _factors()]
        rows += [
            self._row(name, "edge", shape, extra_layers=extra)
            for name, shape in _edges()
            for extra in (0, 1)
        ]
        rows += [self._row(name, "corner", shape) for name, shape in _corners()]
        rows.append(self._row("centre again, after everything", "again", _CENTRE))
        kernels = {row.layout.attention_kernel for row in rows}
        assert len(rows) <= 60 and len({row.name for row in rows}) == len(rows), kernels
        return rows

    def small_rows(self) -> list[Row]:
        """A few small rows for CPUs (seconds): every code path once, with a real out-of-memory."""
        changes: list[tuple[str, dict[str, Any]]] = [
            ("attention=math", {"attention_kernel": "math"}),
            ("rmsnorm=plain", {"rmsnorm_kernel": "plain"}),
            ("checkpointing=full", {"activation_checkpointing": "full"}),
            ("accumulation=4", {"accumulation": 4, "micro_batch_size": 1}),
            ("element-wise=eager", {"environment": _EAGER}),
        ]
        edge = {**_SMALL_CENTRE, "micro_batch_size": 16, "sequence_length": 256}
        return [
            self._row("centre", "centre", _SMALL_CENTRE),
            *(self._row(name, "factor", _SMALL_CENTRE, change) for name, change in changes),
            self._row("beyond the edge", "edge", edge, extra_layers=20),
            self._row("centre again, after everything", "again", _SMALL_CENTRE),
        ]

    def side_by_side(self, *, small: bool = False) -> list[tuple[str, list[Contender]]]:
        """Shapes with their contenders: rows of this worker, and Hugging Face's Llama.

        torch.compile takes half a minute per contender: only some shapes have compiled ones.
        """
        if small:
            ours = self._row("ours sdpa_flash", "pair", _SMALL_CENTRE)
            return [("small", [("ours sdpa_flash", ours), ("hugging_face", None)])]
        planned = []
        for number, (name, shape) in enumerate(_pairs()):
            changes: dict[str, dict[str, Any]] = {
                "ours sdpa_flash": {},
                "ours sdpa_cudnn": {"attention_kernel": "sdpa_cudnn"},
            }
            if number in _COMPILED_PAIRS:
                changes["ours compiled"] = {"torch_compile": True, **changes["ours sdpa_cudnn"]}
            contenders: list[Contender] = [
                (label, self._row(f"{name}: {label}", "pair", {**shape, "accumulation": 2}, change))
                for label, change in changes.items()
            ]
            contenders.append(("hugging_face", None))
            if number in _COMPILED_PAIRS:
                contenders.append(("hugging_face_compiled", None))
            planned.append((name, contenders))
        return planned

    def _cross(self) -> Iterator[Row]:
        axes: dict[str, Sequence[Any]] = {
            "width": ("7b", "13b", "30b", "70b"),
            "vocab_size": (32_000, 128_256),
            "sequence_length": (2048, 4096, 8192),
            "micro_batch_size": (1, 2, 4, 8),
            "attention_kernel": ("sdpa_flash", "sdpa_cudnn", "flash_attn", "flash_attn_4"),
            "rmsnorm_kernel": ("fused", "plain"),
            "activation_checkpointing": ("none", "selective", "full"),
        }
        for values in itertools.product(*axes.values()):
            shape = dict(zip(axes, values, strict=True))
            yield self._row(" ".join(map(str, values)), "cross", shape)

    def _row(
        self,
        name: str,
        group: str,
        shape: Mapping[str, Any],
        change: Mapping[str, Any] = MappingProxyType({}),
        extra_layers: int | None = None,
    ) -> Row:
        """`extra_layers`: more layers than are predicted to fit; None: well within the memory."""
        values = {**shape, **change}
        width = values.pop("width")
        environment = values.pop("environment", {})
        batch = values["micro_batch_size"] * values.pop("accumulation", 1)
        sizes = {key: values.pop(key) for key in ("vocab_size", "sequence_length")}

        def model(layers: int) -> Model:
            return self._model(width, layers, global_batch_size=batch, **sizes)

        layout = layout_from_mapping(values, model(1))
        if extra_layers is None:
            fitting = self._layers_within(model, layout, _SHARE_AWAY_FROM_THE_EDGE)
            layers = max(1, min(_MOST_LAYERS, fitting))
        else:
            layers = max(1, self._layers_within(model, layout, 1.0) + extra_layers)
            name = f"edge: {name}, {layers} layers"
        return Row(
            name=name, group=group, model=model(layers), layout=layout, environment=environment
        )

    def _model(self, width: str, layers: int, **sizes: int) -> Model:
        hidden, inner, heads, key_value_heads = WIDTHS[width]
        return Model(
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=inner,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            **sizes,
        )

    def _layers_within(self, model: Any, layout: Layout, share: float) -> int:
        """The most layers with a predicted peak of at most that share of the memory capacity."""
        layers = 0
        while self._predicted_share(model(layers + 1), layout) <= share:
            layers += 1
        return layers

    def _predicted_share(self, model: Model, layout: Layout) -> float:
        estimates = CostModel(model, self.precision, self._cluster).estimate([layout])
        return float(estimates.peak_memory_gib[0]) / estimates.capacity_gib


def _factors() -> list[tuple[str, dict[str, Any]]]:
    """One factor changed at a time; rows of another sequence length keep the tokens per step."""
    return [
        ("attention=sdpa_cudnn", {"attention_kernel": "sdpa_cudnn"}),
        ("attention=flash_attn_4", {"attention_kernel": "flash_attn_4"}),
        ("attention=flash_attn", {"attention_kernel": "flash_attn"}),
        ("attention=math", {"attention_kernel": "math", "micro_batch_size": 1}),
        ("sequence=2048", {"sequence_length": 2048, "micro_batch_size": 8}),
        ("sequence=8192", {"sequence_length": 8192, "micro_batch_size": 2}),
        ("compiled", {"torch_compile": True}),
        ("element-wise=eager", {"environment": _EAGER}),
        ("accumulation=4", {"accumulation": 4}),
        ("rmsnorm=plain", {"rmsnorm_kernel": "plain"}),
        ("checkpointing=selective", {"activation_checkpointing": "selective"}),
        ("checkpointing=full", {"activation_checkpointing": "full"}),
        ("vocabulary=128k", {"vocab_size": 128_256}),
        ("width=7b", {"width": "7b"}),
        ("width=30b", {"width": "30b"}),
        ("width=70b", {"width": "70b"}),
        ("micro-batch=1", {"micro_batch_size": 1}),
        ("micro-batch=2", {"micro_batch_size": 2}),
        ("micro-batch=8", {"micro_batch_size": 8}),
        ("compiled, width=7b", {"torch_compile": True, "width": "7b"}),
        ("compiled, width=70b", {"torch_compile": True, "width": "70b"}),
    ]


def _shape(width: str, vocabulary: int, length: int, size: int, **more: Any) -> dict[str, Any]:
    return {
        "width": width,
        "vocab_size": vocabulary,
        "sequence_length": length,
        "micro_batch_size": size,
        **more,
    }


def _edges() -> list[tuple[str, dict[str, Any]]]:
    full, plain = {"activation_checkpointing": "full"}, {"rmsnorm_kernel": "plain"}
    return [
        # Activations determine the peak memory.
        ("7b 8k x 8", _shape("7b", 32_000, 8192, 8)),
        ("13b 8k x 4, 128k", _shape("13b", 128_256, 8192, 4)),
        ("30b 4k x 8", _shape("30b", 32_000, 4096, 8)),
        ("70b 8k x 2", _shape("70b", 32_000, 8192, 2)),
        ("13b 4k x 8, plain", _shape("13b", 32_000, 4096, 8, **plain)),
        ("7b 2k x 8, accumulation", _shape("7b", 32_000, 2048, 8, accumulation=2)),
        # The optimiser step determines the peak memory.
        ("13b 4k x 4", _shape("13b", 32_000, 4096, 4)),
        ("70b 4k x 1, 128k", _shape("70b", 128_256, 4096, 1)),
        ("7b 8k x 1, full", _shape("7b", 32_000, 8192, 1, **full)),
        ("30b 2k x 4, full", _shape("30b", 32_000, 2048, 4, **full)),
    ]


def _pairs() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("13b 4k x 4", _shape("13b", 32_000, 4096, 4)),
        ("13b 2k x 8", _shape("13b", 32_000, 2048, 8)),
        ("13b 8k x 2", _shape("13b", 32_000, 8192, 2)),
        ("7b 4k x 2, 128k", _shape("7b", 128_256, 4096, 2)),
        ("70b 4k x 2", _shape("70b", 32_000, 4096, 2)),
        ("7b 2k x 4", _shape("7b", 32_000, 2048, 4)),
    ]


def _corners() -> list[tuple[str, dict[str, Any]]]:
    cudnn, compiled = {"attention_kernel": "sdpa_cudnn"}, {"torch_compile": True}
    full = {"activation_checkpointing": "full"}
    return [
        ("13b 2k x 8, cudnn", _shape("13b", 32_000, 2048, 8, **cudnn)),
        ("13b 8k x 2, cudnn", _shape("13b", 32_000, 8192, 2, **cudnn)),
        ("7b 8k x 1, cudnn, 128k", _shape("7b", 128_256, 8192, 1, **cudnn)),
        ("70b 8k x 2, cudnn", _shape("70b", 32_000, 8192, 2, **cudnn)),
        ("70b 2k x 1, plain", _shape("70b", 128_256, 2048, 1, rmsnorm_kernel="plain")),
        ("7b 2k x 1, full", _shape("7b", 32_000, 2048, 1, **full)),
        ("30b 8k x 1, full, cudnn", _shape("30b", 128_256, 8192, 1, **full, **cudnn)),
        ("13b 4k x 4, cudnn, compiled", _shape("13b", 32_000, 4096, 4, **compiled, **cudnn)),
    ]
