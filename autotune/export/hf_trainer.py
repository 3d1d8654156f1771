"""Export for the Trainer of transformers: TrainingArguments as JSON, and launch.sh."""

import json

from autotune.export._format import Export, Format
from autotune.export._hugging_face import deepspeed_notes, deepspeed_of, model_notes
from autotune.export._limits import refuse_parallel
from autotune.export._script import heading, script, torchrun
from autotune.layout import Layout
from autotune.request import Request

CHECKED_AGAINST = "transformers 5.23.0"
_PROGRAM = "The Trainer"


def _export(layout: Layout, request: Request) -> Export:
    """training_arguments.json, with DeepSpeed's configuration in it, and launch.sh."""
    refuse_parallel(layout, _PROGRAM, "tensor_parallel", "pipeline_parallel")
    deepspeed = deepspeed_of(layout, request)
    notes = [*model_notes(layout), *deepspeed_notes(layout, request)]
    if layout.activation_checkpointing == "selective":
        notes.append(
            f"{_PROGRAM} cannot recompute the attention core alone; nearest: no checkpointing, "
            "which needs more memory."
        )
    if layout.torch_compile:
        notes.append(f"{_PROGRAM} compiles the whole model, not each block.")
    arguments = {
        "output_dir": "output",
        "per_device_train_batch_size": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.gradient_accumulation_steps,
        "bf16": request.space.precision == "bf16",
        "use_cpu": request.space.cluster.device.kind == "cpu",
        "max_grad_norm": deepspeed["gradient_clipping"],
        "gradient_checkpointing": layout.activation_checkpointing == "full",
        "torch_compile": layout.torch_compile,
        "deepspeed": deepspeed,
    }
    comment = heading(layout, request, CHECKED_AGAINST, notes)
    command = [
        *torchrun(request.space.cluster),
        '"${TRAIN_SCRIPT:?your script, which reads TrainingArguments from a JSON file}"',
        '\\\n  "$here/training_arguments.json"',
    ]
    return Export(
        files={
            "training_arguments.json": json.dumps(arguments, indent=2) + "\n",
            "launch.sh": script(comment, command, variables=request.env),
        },
        notes=tuple(notes),
    )


FORMAT = Format(checked_against=CHECKED_AGAINST, export=_export)
