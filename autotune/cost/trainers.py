"""Trainers (training code), one JSON file each: those in `data/trainers`, and those of users.

A file says what the trainer sends and what it hides behind computation, which precision its
gradients have, and its own values of constants, each with its source.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.cost.constants import Constants, bounds_of, known_constants
from autotune.cost.stages import Partition
from autotune.errors import InputError
from autotune.hardware import Device, Kind, Measured, Network, files, usual_network
from autotune.hardware.constants import ConstantsOfFile
from autotune.inputs import Flag, Name, json_object, listed, shown, validated
from autotune.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Sharding:
    """What the replicas exchange at one ZeRO stage."""

    reduction: Literal["all_reduce", "reduce_scatter"]
    """How gradients are summed. An all-reduce moves twice as much."""
    reduced: Literal["step", "micro_batch"]
    """Whether gradients are reduced once per step or after every micro-batch."""
    gathered: Literal["never", "update", "forward", "passes"]
    """When weights are gathered: once per step after the update; or for every micro-batch, for its
    forward pass or for both passes."""
    hides_reduction: Flag
    """Whether gradients are reduced while the backward pass computes."""
    hides_gathering: Flag
    """Whether weights are gathered while a pass computes."""

    def __post_init__(self) -> None:
        if self.gathered in ("forward", "passes") and self.reduced == "step":
            raise ValueError(
                "reduced must be micro_batch where weights are gathered for every micro-batch, "
                "got step"
            )


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Trainer:
    """What the formulas need of a trainer."""

    name: Name
    """Lower-case name, the same as the file's."""
    source: str
    """Which code it is, and where its figures come from."""
    partition: Partition
    """How it distributes layers over pipeline stages."""
    states: Literal["deepspeed", "recorded", "megatron", "fsdp"]
    """Its formula of the memory of weights, gradients and optimiser states
    (`autotune.cost.states.STATES`)."""
    gradient_bytes: Literal[2, 4] | None = None
    """Bytes per element of gradients that are accumulated and reduced in mixed precision; null:
    those of the weights."""
    sharding: Mapping[Annotated[int, Field(ge=0, le=3)], Sharding]
    """By ZeRO stage."""
    deepspeed_engine: Flag = True
    """Whether it trains with DeepSpeed's engines, whose ZeRO stages 2 and 3 know no pipeline, and
    whose pipeline stages send and receive one after the other, not at once."""
    hides_with_stages: Flag
    """Whether it hides data-parallel communication also where there are pipeline stages."""
    partitions_transfers: Flag
    """Whether tensor-parallel ranks send a part each to the next stage, gathered there."""
    hides_tensor_parallel: Literal["never", "backward", "passes"]
    """Whether tensor-parallel collectives run beside matrix products: in no pass, in the backward
    pass, or in both."""
    keeps_gathered_inputs: Flag
    """Whether sequence parallelism keeps the gathered inputs of the tensor-parallel regions for the
    backward pass; else their shards, which are gathered again."""
    gathers_logits: Flag = False
    """Whether every tensor-parallel rank gets all logits; else the loss is computed of shards."""
    recomputed_sums: Literal[1, 2] = 2
    """Tensor-parallel sums of a block that recomputation repeats: the second is not needed for the
    backward pass."""
    kept_parameters: Annotated[float, Field(ge=0)] = 0
    """Where weights are gathered for both passes: how many of them, at most, stay on a rank from
    the forward to the backward pass."""
    constants: ConstantsOfFile = Field(default_factory=dict)
    """Its values of constants, on every device."""

    def why_unsupported(self, layout: Layout) -> str | None:
        """Why the trainer cannot train the layout, or None."""
        if layout.data_parallel == 1 or layout.zero_stage in self.sharding:
            return None
        stages = listed([str(stage) for stage in self.sharding])
        return f"trainer {self.name} has ZeRO stage {stages} only, got {layout.zero_stage}"


StatedTrainer = str | Mapping[str, Any] | Trainer
"""A trainer, the content of its file, its name, or the path of its file (NAME.json)."""


@functools.cache
def known_trainers() -> dict[str, Trainer]:
    """All trainers with a file in `data/trainers`, by name."""
    folder = importlib.resources.files(__package__) / "data" / "trainers"
    return {
        file.name.removesuffix(".json"): validated(
            Trainer,
            json_object(file.read_text(encoding="utf-8"), what=f"trainer {file.name}"),
            what=f"trainer {file.name}",
        )
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
    }


def trainer_of(stated: StatedTrainer) -> Trainer:
    """The trainer that is stated. Raises InputError for an unknown name and for a bad file."""
    if isinstance(stated, Trainer):
        return stated
    if isinstance(stated, str):
        return files.named(Trainer, stated, known_trainers(), what="trainer")
    return validated(Trainer, stated, what="trainer")


def trainer_content(trainer: Trainer) -> dict[str, Any]:
    """What the trainer's file holds; `trainer_of` reads it back equal."""
    content: dict[str, Any] = pydantic.TypeAdapter(Trainer).dump_python(trainer, mode="json")
    return content


def trainer_to_json(trainer: Trainer) -> str:
    """The trainer's file."""
    return json.dumps(trainer_content(trainer), indent=2) + "\n"


def hiding_all(trainer: Trainer) -> Trainer:
    """The same trainer, but hiding all communication that computation can hide."""
    return dataclasses.replace(
        trainer,
        name=f"{trainer.name}, hiding all",
        hides_tensor_parallel="passes",
        hides_with_stages=True,
        sharding={
            stage: dataclasses.replace(sharding, hides_reduction=True, hides_gathering=True)
            for stage, sharding in trainer.sharding.items()
        },
    )


def alternatives(trainer: Trainer) -> list[Trainer]:
    """What training code may be that is thought to be `trainer`: the same but hiding all, and each
    other known trainer."""
    others = [other for name, other in known_trainers().items() if name != trainer.name]
    return [hiding_all(trainer), *others]


def assumed_constants(trainer: StatedTrainer) -> dict[str, float]:
    """The values of that trainer where nothing is known of device and network."""
    values = {name: constant.value for name, constant in known_constants().items()}
    own = trainer_of(trainer)
    return {**values, **_checked(f"trainer {own.name}", own.constants)}


def constants_for(
    device: Device, trainer: StatedTrainer, network: Network | None = None
) -> Constants:
    """The constants of that trainer on that device and network (None: the device's usual one).

    Constants in the device's file override those of the network: a file that `autotune calibrate`
    writes has constants of both. Raises InputError for unknown names.
    """
    own = trainer_of(trainer)
    if unknown := device.trainers.keys() - known_trainers().keys():
        raise InputError(
            f"hardware {device.name}: trainer must be one of {', '.join(known_trainers())}, "
            f"got {shown(min(unknown))}"
        )
    links = network or usual_network(device)
    return {
        **assumed_constants(own),
        **_checked(f"network {links.name}", links.constants),
        **_checked(f"hardware {device.name}", device.constants),
        **_checked(f"hardware {device.name}", device.trainers.get(own.name, {})),
    }


# Standard deviation of a constant, as a share of its `spread`, by the origin of its value.
_KNOWN = {"fitted": 0.2, "stated": 0.5, "assumed": 1.0}


def spreads_for(
    device: Device, trainer: StatedTrainer, network: Network | None = None
) -> dict[str, float]:
    """Standard deviation of the logarithm of each constant of `constants_for`."""
    own = trainer_of(trainer)
    kinds: dict[str, Kind] = {}
    for constants in (
        own.constants,
        (network or usual_network(device)).constants,
        device.constants,
        device.trainers.get(own.name, {}),
    ):
        kinds.update({name: constant.kind for name, constant in constants.items()})
    return {
        name: constant.spread * _KNOWN[kinds.get(name, "assumed")]
        for name, constant in known_constants().items()
    }


def spreads_after_a_fit() -> dict[str, float]:
    """Standard deviation of the logarithm of each constant where all were fitted to runs."""
    return {name: known.spread * _KNOWN["fitted"] for name, known in known_constants().items()}


def _checked(what: str, constants: Mapping[str, Measured]) -> dict[str, float]:
    """Values by name. Raises InputError for a name or a value that the formulas do not know."""
    for name, measured in constants.items():
        if name not in known_constants():
            raise InputError(
                f"{what}: constant must be one of those of constants.json, got {shown(name)}"
            )
        lower, upper = bounds_of(name)
        if not lower <= measured.value <= upper:
            raise InputError(
                f"{what}: {name} must be from {lower:g} to {upper:g}, got {measured.value:g}"
            )
    return {name: measured.value for name, measured in constants.items()}
