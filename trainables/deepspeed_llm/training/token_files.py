"""Files of token ids, memory-mapped: .bin, .npy, Hugging Face's tokenised folders. Free of torch.

What is none of these is text, whose bytes are the tokens, as in trials.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from autotune.errors import InputError, first_line
from autotune.inputs import json_object, read_text, shown
from autotune.trial.corpus import files_below, text_files
from trainables.deepspeed_llm.tokens import ArrayTokens, TextTokens

DTYPES = ("uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64")
"""Types that the token ids of a .bin file may have."""
_COLUMN = "input_ids"
_DATASET = "state.json"
_DATASETS = "dataset_dict.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of files of tokens."""

    recognises: Callable[[Path], bool]
    """Whether a path is of this format, by its name and what is in a folder."""
    open: Callable[[str | None, str | None], ArrayTokens]
    """Map the tokens of such a path, None being the text that trials use by default. `dtype` is
    None where the format needs none. Raises InputError and OSError."""
    is_text: bool = False
    """Whether it is text, which trials read in order; samples of tokens are shuffled."""
    needs_dtype: bool = False
    """Whether the type of the ids is not in the file."""


def format_of(path: str | None) -> Format:
    """The format of a path; None is the text that trials use by default."""
    return next(form for form in FORMATS if form.recognises(Path(path or "")))


def open_tokens(path: str | None, dtype: str | None, *, vocab_size: int) -> ArrayTokens:
    """Map the tokens of a path; the first and last thousand must be in the vocabulary.

    Raises InputError, whose sentence does not begin with a field.
    """
    form = format_of(path)
    if form.needs_dtype != (dtype is not None):
        wanted = "must be given with a .bin file" if form.needs_dtype else "is for .bin files only"
        raise InputError(f"`data_dtype` {wanted}, got {shown(path or 'text')}")
    try:
        tokens = form.open(path, dtype)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise InputError(f"cannot read {shown(path)}: {reason}") from None
    ends = min(1000, len(tokens))
    for start in (0, len(tokens) - ends):
        check_ids(tokens.read(start, ends), vocab_size)
    return tokens


def check_ids(ids: np.ndarray, vocab_size: int) -> None:
    """Raise InputError where a token id is not in the vocabulary."""
    least, largest = int(ids.min()), int(ids.max())
    if least < 0 or largest >= vocab_size:
        wrong = least if least < 0 else largest
        raise InputError(
            f"token ids must be from 0 to vocab_size - 1 = {vocab_size - 1}, got {wrong}"
        )


def _open_text(name: str | None, dtype: str | None) -> ArrayTokens:
    return TextTokens(text_files(None) if name is None else files_below(name))


def _open_bin(name: str | None, dtype: str | None) -> ArrayTokens:
    path = _existing(name)
    kind, size = np.dtype(dtype), path.stat().st_size
    if not size or size % kind.itemsize:
        raise InputError(
            f"{shown(path)} must be a multiple of the {kind.itemsize} bytes of {dtype}, got {size}"
        )
    return ArrayTokens([np.memmap(path, dtype=kind, mode="r")])


def _open_npy(name: str | None, dtype: str | None) -> ArrayTokens:
    path = _existing(name)
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise InputError(f"cannot read {shown(path)}: {first_line(error)}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"{shown(path)} must hold one dimension of integers, got {what}")
    if not len(array):
        raise InputError(f"{shown(path)} must hold tokens, got none")
    return ArrayTokens([array])


def _open_folder(name: str | None, dtype: str | None) -> ArrayTokens:
    """The rows of the column input_ids, one after the other, with nothing between them."""
    path = Path(str(name))
    state = json_object(read_text(path / _DATASET), what=shown(path / _DATASET))
    if state.get("_indices_data_files"):
        raise InputError(f"{shown(path)} has an index of rows: call flatten_indices() and save it")
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
        files = [path / Path(name).name for name in names]
    except (KeyError, TypeError):
        raise InputError(f"{shown(path / _DATASET)}: must list the _data_files") from None
    parts = [part for file in files for part in _columns(file) if len(part)]
    if not parts:
        raise InputError(f"{shown(path)} must hold tokens, got none")
    return ArrayTokens(parts)


def _columns(file: Path) -> list[np.ndarray]:
    """The token ids of each record batch of a file, without copying them."""
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    except pa.ArrowInvalid as error:
        raise InputError(f"cannot read {shown(file)}: {first_line(error)}") from None
    if _COLUMN not in table.column_names:
        columns = ", ".join(table.column_names)
        raise InputError(f"{shown(file)} must have a column {_COLUMN}, got {shown(columns)}")
    chunks = table[_COLUMN].chunks
    kind = table.schema.field(_COLUMN).type
    lists = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    if not lists or not pa.types.is_integer(kind.value_type):
        raise InputError(f"{shown(file)}: {_COLUMN} must be lists of integers, got {kind}")
    if any(chunk.null_count or chunk.flatten().null_count for chunk in chunks):
        raise InputError(f"{shown(file)}: {_COLUMN} must have no nulls")
    return [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in chunks]


def _refuse_datasets(name: str | None, dtype: str | None) -> ArrayTokens:
    path = Path(str(name))
    try:
        splits = ", ".join(json.loads(read_text(path / _DATASETS))["splits"])
    except (ValueError, KeyError, TypeError):
        splits = "its splits"
    raise InputError(f"{shown(path)} has several data sets: give the folder of one ({splits})")


def _existing(name: str | None) -> Path:
    path = Path(str(name))
    if not path.is_file():
        raise InputError(f"no such file: {shown(path)}")
    return path


FORMATS = (
    Format(recognises=lambda path: path.suffix == ".bin", open=_open_bin, needs_dtype=True),
    Format(recognises=lambda path: path.suffix == ".npy", open=_open_npy),
    Format(recognises=lambda path: os.path.isfile(path / _DATASET), open=_open_folder),
    Format(recognises=lambda path: os.path.isfile(path / _DATASETS), open=_refuse_datasets),
    Format(recognises=lambda path: True, open=_open_text, is_text=True),
)
"""Every format; the first that recognises a path is its format."""
