"""The Ray Tune trainable: runs one layout per Tune trial."""

from collections.abc import Generator
from typing import Any

import ray
from ray import tune

from autotune.errors import NodeCheckFailed, NodeOutOfMemory
from autotune.on_ray.placement import NodeGroup, node_group
from autotune.trial.trainable import Trainable
from autotune.trial.trial import (
    Ended,
    Outcome,
    StepReport,
    TrialSpec,
    to_json,
    trial_spec_from_json,
)


class LayoutTrial(tune.Trainable):
    """Runs one layout; `step()` is one training step. The actor runs on the head.

    With `reuse_actors` Tune keeps it, and so the node actors, for the next trial of the same node
    count.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The placement group: as many whole nodes as the layout needs."""
        spec = trial_spec_from_json(config["spec"])
        return node_group(
            spec.cluster,
            spec.layout.world_size,
            title=config["title"],
            virtual=config["virtual"],
            avoid=config["avoid"],
        )

    def setup(self, config: dict[str, Any], worker: Trainable | None = None) -> None:
        """Start the node actors, check the nodes, and prepare the first trial."""
        assert worker is not None, "given by tune.with_parameters"
        spec = trial_spec_from_json(config["spec"])
        self._title = config["title"]
        self._worker = worker
        self._unfit_node: str | None = None
        self._nodes: NodeGroup | None = None
        self._take_nodes(spec)
        try:
            worker.check(spec.cluster, self._hosts)
        except NodeCheckFailed as error:
            self._unfit_node = str(error)
        self._begin(spec)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the last trial and prepare the next one on the same nodes."""
        self._events.close()
        self._begin(trial_spec_from_json(new_config["spec"]))
        return True

    def step(self) -> dict[str, Any]:
        """The next training step, or the trial's end. Raises NodeLost."""
        if self._unfit_node is not None:
            return {"unfit_node": self._unfit_node, "done": True}
        try:
            event = next(self._events)
        except NodeOutOfMemory as error:
            self._nodes_are_broken = True
            event = Ended(outcome=Outcome.OOM, reason=str(error))
        nodes = [] if self._nodes is None else self._nodes.names
        if isinstance(event, StepReport):
            return {"step_report": to_json(event), "nodes": nodes}
        return {"ended": to_json(event), "nodes": nodes, "done": True}

    def cleanup(self) -> None:
        """End the trial and its node actors."""
        self._events.close()
        self._give_nodes_back()

    def __repr__(self) -> str:
        """The actor's name in Ray's dashboard."""
        return f"search {self._title}"

    @property
    def _hosts(self) -> list[Any]:
        return [] if self._nodes is None else list(self._nodes.hosts)

    def _take_nodes(self, spec: TrialSpec) -> None:
        self._nodes_are_broken = False
        if self._worker.host_factory is not None:
            group = ray.util.get_current_placement_group()
            assert group is not None, "Tune places the trainable in the trial's group"
            self._nodes = NodeGroup(
                group, spec.cluster, self._worker.host_factory, title="check of the nodes"
            )

    def _give_nodes_back(self) -> None:
        if self._nodes is not None:
            self._nodes.close()

    def _begin(self, spec: TrialSpec) -> None:
        """Prepare the trial; the first `step()` starts it, as Tune retries no earlier failure."""
        self._events = self._run(spec)

    def _run(self, spec: TrialSpec) -> Generator[StepReport | Ended, None, None]:
        if self._nodes_are_broken:
            self._give_nodes_back()
            self._take_nodes(spec)
        if self._nodes is not None:
            self._nodes.entitle(f"{spec.trial_id} {spec.layout.describe()}")
        yield from self._worker.run(spec, self._hosts)
