"""Models from Hugging Face's config.json: one small module per family of architectures.

A module declares `ARCHITECTURE` or `ARCHITECTURES`; every module of this package is read.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import InputError
from autotune.inputs import listed, read_json, shown, validated
from autotune.model import Model, Precision
from autotune.models.architecture import Architecture, Config

_PRECISION_OF_DTYPE: dict[str, Precision] = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "bf16",
}
# Fields of a model that a config does not have, and that may be given with it.
_BATCH = ("sequence_length", "global_batch_size", "precision")


@functools.cache
def architectures() -> dict[str, Architecture]:
    """All architectures by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        content = importlib.import_module(f"{__name__}.{module.name}")
        one = getattr(content, "ARCHITECTURE", None)
        for architecture in getattr(content, "ARCHITECTURES", () if one is None else (one,)):
            found[architecture.name] = architecture
    return found


def load_model(path: str, *, sequence_length: int, global_batch_size: int) -> Model:
    """The model of a config.json, or of a folder with one, trained on that batch.

    Raises InputError.
    """
    batch = {"sequence_length": sequence_length, "global_batch_size": global_batch_size}
    return model_from_mapping({**read_config(path, what="model"), **batch})


def read_config(path: str, *, what: str) -> dict[str, Any]:
    """The content of a config.json, of a folder with one, or inline JSON. Raises InputError."""
    return read_json(str(Path(path) / "config.json") if is_folder(path) else path, what=what)


def is_folder(path: str) -> bool:
    """Whether that is the path of a folder, and not of a file or inline JSON."""
    try:
        return not path.lstrip().startswith("{") and Path(path).is_dir()
    except OSError:  # longer than a path can be
        return False


def model_from_mapping(values: Mapping[str, Any], *, what: str = "model") -> Model:
    """Read a config.json with sequence_length, global_batch_size and, if wanted, precision.

    The architecture is that of `model_type`, else of `architectures`; keys that may have an effect
    and are not known for it are an error. Without either, the keys are the fields of `Model`.
    Raises InputError.
    """
    if "model_type" not in values and "architectures" not in values:
        fields = {name: value for name, value in values.items() if value is not None}
        config = Config(fields, what)
        precision = _precision(config, what)
        fields = {**precision, **config.rest()}
        fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
        fields.setdefault("notes", tuple(config.notes))
        return validated(Model, fields, what=what)
    architecture = _architecture_of(values, what)
    config = Config({k: v for k, v in values.items() if k not in _BATCH}, what)
    precision = _precision(config, what)
    try:
        fields = architecture.read(config)
    except InputError as error:
        sentence = str(error)
        raise InputError(sentence if sentence.startswith(what) else f"{what}: {sentence}") from None
    config.refuse_what_is_left()
    read = {
        **precision,
        **fields,
        **{name: values[name] for name in _BATCH if values.get(name) is not None},
        "architecture": architecture.name,
        "notes": tuple(config.notes),
    }
    return validated(
        Model, {name: value for name, value in read.items() if value is not None}, what=what
    )


def _architecture_of(values: Mapping[str, Any], what: str) -> Architecture:
    kind, classes = values.get("model_type"), values.get("architectures")
    known = architectures().values()
    if kind is not None:
        for architecture in known:
            if kind in architecture.model_types:
                return architecture
        types = [name for architecture in known for name in architecture.model_types]
        raise InputError(f"{what}: model_type must be {listed(sorted(types))}, got {shown(kind)}")
    if isinstance(classes, list) and len(classes) == 1:
        for architecture in known:
            if classes[0] in architecture.classes:
                return architecture
    names = [name for architecture in known for name in architecture.classes]
    raise InputError(
        f"{what}: architectures must be one of {listed(sorted(names))}, got {shown(classes)}"
    )


def _precision(config: Config, what: str) -> dict[str, Precision]:
    """The precision of `dtype` or, as it was called before, `torch_dtype`."""
    dtype, old = config.take("dtype", None), config.take("torch_dtype", None)
    name = dtype if dtype is not None else old
    if name is None:
        return {}
    if not isinstance(name, str) or name not in _PRECISION_OF_DTYPE:
        known = " or ".join(_PRECISION_OF_DTYPE)
        raise InputError(f"{what}: dtype must be {known}, got {shown(name)}")
    if name == "float16":
        config.notes.append("the weights are published in float16; they are trained in bf16")
    return {"precision": _PRECISION_OF_DTYPE[name]}
