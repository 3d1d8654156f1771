"""Export for Megatron-LM: launch.sh with the arguments of its pretrain_gpt.py."""

import shlex
from typing import Any

from autotune.export import _megatron
from autotune.export._format import Export, Format
from autotune.export._limits import gpu_note
from autotune.export._script import heading, script, torchrun
from autotune.layout import Layout
from autotune.request import Request
from autotune.trial.deepspeed_config import GRADIENT_CLIPPING

CHECKED_AGAINST = "Megatron-LM of megatron-core 0.19.2"
_PROGRAM = "Megatron-LM"

# The arguments of megatron-core's fields whose names are not those of the fields.
_NAMES = {
    "layernorm_epsilon": "norm-epsilon",
    "num_moe_experts": "num-experts",
    "rope_scaling": "use-rope-scaling",
}
# Without data of the user: random tokens. One token is added for the end of documents.
_MOCK_DATA = "--mock-data --tokenizer-type NullTokenizer --vocab-size {vocabulary}"


def _export(layout: Layout, request: Request) -> Export:
    """launch.sh, which needs a clone of Megatron-LM in MEGATRON_LM."""
    notes = [*gpu_note(request, _PROGRAM), *_megatron.notes(layout, _PROGRAM)]
    arguments = _arguments(layout, request)
    data = _MOCK_DATA.format(vocabulary=request.space.model.vocab_size - 1)
    command = [
        *torchrun(request.space.cluster),
        '"${MEGATRON_LM:?folder of a clone of Megatron-LM}/pretrain_gpt.py"',
        *(f"\\\n  {argument}" for argument in arguments),
        f"\\\n  ${{DATA_ARGUMENTS:-{data}}}",
        '\\\n  --train-iters "${STEPS:-20}" --lr "${LR:-1e-4}"',
    ]
    comment = heading(layout, request, CHECKED_AGAINST, notes)
    variables = dict(request.env)
    if layout.tensor_parallel > 1 and layout.zero_stage not in _megatron.SHARDING:
        # Megatron-LM wants it: communication then starts in the order of the calls.
        variables = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", **variables}
    return Export(
        files={"launch.sh": script(comment, command, variables=variables)}, notes=tuple(notes)
    )


def _arguments(layout: Layout, request: Request) -> list[str]:
    """The arguments, each with its values."""
    model = request.space.model
    fields = _megatron.fields(layout, request, _PROGRAM)
    arguments = []
    if not fields.pop("share_embeddings_and_output_weights"):
        arguments.append("--untie-embeddings-and-output-weights")
    arguments += _feed_forward(fields)
    if fields.get("num_query_groups", model.num_attention_heads) < model.num_attention_heads:
        arguments.append("--group-query-attention")
    else:
        fields.pop("num_query_groups", None)
    arguments += [_written(name, value) for name, value in fields.items() if value is not None]
    arguments += [
        f"--max-position-embeddings {model.max_position_embeddings or model.sequence_length}",
        f"--micro-batch-size {layout.micro_batch_size}",
        f"--global-batch-size {model.global_batch_size}",
        f"--clip-grad {GRADIENT_CLIPPING}",
        *_data_parallel(layout),
    ]
    if request.space.precision == "bf16":
        arguments.append("--bf16")
    return [argument for argument in arguments if argument]


def _feed_forward(fields: dict[str, Any]) -> list[str]:
    """Arguments for biases and activation, whose fields are taken out."""
    gated, function = fields.pop("gated_linear_unit"), fields.pop("activation_func")
    fused, biases = fields.pop("bias_activation_fusion"), fields.pop("add_bias_linear")
    if biases:
        fields.pop("add_qkv_bias")  # implied
    arguments = [] if biases else ["--disable-bias-linear"]
    if gated:
        arguments.append("--swiglu")
    elif function == "squared_relu":
        arguments.append("--squared-relu")
    elif not fused:
        arguments.append("--no-bias-gelu-fusion")
    return arguments


def _data_parallel(layout: Layout) -> list[str]:
    overlapped = ["--overlap-grad-reduce"] if layout.data_parallel > 1 else []
    if layout.zero_stage in _megatron.SHARDING:
        return [
            *overlapped,
            "--use-distributed-optimizer",
            "--use-megatron-fsdp",
            f"--data-parallel-sharding-strategy {_megatron.SHARDING[layout.zero_stage]}",
            "--ckpt-format fsdp_dtensor",
        ]
    return [*overlapped, *["--use-distributed-optimizer"] * (layout.zero_stage == 1)]


def _written(name: str, value: Any) -> str:
    flag = f"--{_NAMES.get(name, name.replace('_', '-'))}"
    match value:
        case bool():
            return flag if value else ""
        case tuple():
            words = ",".join(map(str, value))
        case [int(), *_]:
            words = str(value).replace(" ", "")
        case list():
            words = " ".join(value)
        case _:
            words = str(value)
    plain = not set(words) & set("|[]")
    return f"{flag} {words if plain else shlex.quote(words)}"


FORMAT = Format(checked_against=CHECKED_AGAINST, export=_export)
