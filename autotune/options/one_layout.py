"""One layout as an option of a command."""

from autotune.errors import InputError
from autotune.inputs import read_json
from autotune.layout import Layout, layout_from_mapping, why_illegal
from autotune.space import SearchSpace


def chosen_layout(text: str, space: SearchSpace, option: str) -> Layout:
    """The layout that an option gives as JSON, inline or as a file, on all devices of the cluster.

    A missing data-parallel size is derived from the cluster. Raises InputError.
    """
    values = read_json(text, what=option)
    ranks = [values.get(f"{kind}_parallel", 1) for kind in ("tensor", "pipeline")]
    if all(isinstance(size, int) and size > 0 for size in ranks):
        values.setdefault("data_parallel", max(1, space.cluster.devices // (ranks[0] * ranks[1])))
    layout = layout_from_mapping(values, space.model, what=option)
    if layout.world_size != space.cluster.devices:
        raise InputError(
            f"{option}: tensor_parallel * pipeline_parallel * data_parallel must be the "
            f"{space.cluster.devices} devices of the cluster, got {layout.world_size}"
        )
    engine = space.deepspeed_engine
    if reason := why_illegal(layout, space.model, space.precision, deepspeed_engine=engine):
        raise InputError(f"{option}: {reason}")
    return layout
