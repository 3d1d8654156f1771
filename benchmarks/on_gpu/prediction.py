"""Section 4: predictions of the cost model (constants of section 3) for every row of section 1."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from autotune.cluster import Cluster
from autotune.cost.model import CostModel
from autotune.hardware import Device
from autotune.layout import Layout
from autotune.model import Model
from autotune.space import precision_on

_WITHIN = 0.15
_COUNTS = ("out_of_memory", "near_the_edge")


def predict(
    device: Device, memory_gib: float | None, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Predicted step time, peak memory and fit of each row that ran or ran out of memory.

    Rows with eager element-wise operations are skipped: the cost model does not describe them.
    """
    cluster = Cluster(nodes=1, gpus_per_node=1, device=device, memory_gib=memory_gib)
    predictions = {}
    for name, row in rows.items():
        if row["outcome"] not in ("ok", "oom") or row["environment"]:
            continue
        model = Model(**row["model"])
        cost = CostModel(model, precision_on(device.kind), cluster)
        estimate = cost.estimate([Layout(**row["layout"])])
        step, peak = float(estimate.step_seconds[0]), float(estimate.peak_memory_gib[0])
        ran_out = row["outcome"] == "oom"
        predicted_oom = float(estimate.fit_probability[0]) < 0.5
        predictions[name] = {
            "predicted_step_seconds": step,
            "predicted_peak_memory_gib": peak,
            "predicted_memory_share": peak / estimate.capacity_gib,
            "predicted_fit_probability": float(estimate.fit_probability[0]),
            "step_time_error": None if ran_out else step / row["step_seconds"] - 1,
            "memory_error": None if ran_out else peak / row["peak_memory_gib"] - 1,
            "oom_is_right": predicted_oom == ran_out,
        }
    return predictions


def summary(
    predictions: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | int | None]:
    """Median absolute errors, accuracy of the out-of-memory prediction, and the number of rows near
    the memory capacity. Null if nothing was measured."""

    def median_of(name: str) -> float | None:
        errors = [abs(p[name]) for p in predictions.values() if p[name] is not None]
        return statistics.median(errors) if errors else None

    if not predictions:
        return dict.fromkeys(("rows", *_COUNTS, "step_time_error", "memory_error", "oom_right"))
    near = [abs(math.log(p["predicted_memory_share"])) < _WITHIN for p in predictions.values()]
    return {
        "rows": len(predictions),
        "out_of_memory": sum(rows[name]["outcome"] == "oom" for name in predictions),
        "near_the_edge": sum(near),
        "step_time_error": median_of("step_time_error"),
        "memory_error": median_of("memory_error"),
        "oom_right": statistics.mean(p["oom_is_right"] for p in predictions.values()),
    }
