"""torchtitan's job for a layout, and the TOML file of its releases 0.2."""

from typing import Any

from autotune.layout import Layout
from autotune.request import Request
from autotune.trial.deepspeed_config import GRADIENT_CLIPPING

RELEASE_OF_TOML = "0.2.2"
_TOML = """\
{comment}
# For releases 0.2, which know models by name: give yours in [model].
#   torchrun ... -m torchtitan.train --job.config_file job.toml
{notes}
[model]
name = "llama3"
flavor = "debugmodel"

[training]
local_batch_size = {local_batch}
global_batch_size = {global_batch}
seq_len = {length}
max_norm = {clipping}
steps = 20
mixed_precision_param = "{precision}"

[parallelism]
data_parallel_replicate_degree = {replicas}
data_parallel_shard_degree = {shards}
fsdp_reshard_after_forward = "{reshard}"
tensor_parallel_degree = {tensor}
pipeline_parallel_degree = {stages}
pipeline_parallel_schedule = "1F1B"
pipeline_parallel_microbatch_size = {micro_batch}
pipeline_parallel_first_stage_less_layers = 0
pipeline_parallel_last_stage_less_layers = 0

[activation_checkpoint]
mode = "{checkpointing}"
selective_ac_option = "op"

[compile]
enable = {compiled}
components = ["model"]
"""


def job_fields(layout: Layout, request: Request) -> dict[str, Any]:
    """Values that do not depend on torchtitan's release."""
    replicated = layout.zero_stage == 0
    in_flight = layout.gradient_accumulation_steps if layout.pipeline_parallel > 1 else 1
    return {
        "global_batch": request.space.model.global_batch_size,
        # With stages the batch of a replica is one, which the schedule splits.
        "local_batch": layout.micro_batch_size * in_flight,
        "micro_batch": layout.micro_batch_size,
        "clipping": GRADIENT_CLIPPING,
        "precision": {"bf16": "bfloat16", "fp32": "float32"}[request.space.precision],
        "replicas": layout.data_parallel if replicated else 1,
        "shards": 1 if replicated else layout.data_parallel,
        "reshard": "always" if layout.zero_stage == 3 else "never",
        "tensor": layout.tensor_parallel,
        "sequence": layout.sequence_parallel,
        "stages": layout.pipeline_parallel,
        "checkpointing": layout.activation_checkpointing,
        "compiled": layout.torch_compile,
    }


def toml_job(layout: Layout, request: Request, comment: str) -> str:
    """The text of job.toml, for releases 0.2; `comment` stands at its head."""
    notes = []
    if layout.tensor_parallel > 1 and not layout.sequence_parallel:
        notes.append("#   Tensor parallelism has sequence parallelism always.\n")
    if layout.zero_stage == 0 and layout.tensor_parallel * layout.pipeline_parallel > 1:
        notes.append("#   Replicas without sharding are refused beside other parallelism.\n")
    fields = job_fields(layout, request)
    return _TOML.format(
        comment=comment,
        notes="".join(notes),
        length=request.space.model.sequence_length,
        **{**fields, "compiled": str(fields["compiled"]).lower()},
    )
