"""Tokens in every format: what is read, in which order, and what is refused."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from autotune.errors import InputError
from trainables.deepspeed_llm.tokens import ArrayTokens, InOrder
from trainables.deepspeed_llm.training.samples import InVocabulary, Shuffled
from trainables.deepspeed_llm.training.token_files import DTYPES, open_tokens

IDS = np.random.default_rng(0).integers(100, size=5000)
ROWS = [row.tolist() for row in np.split(IDS, np.cumsum([700, 1, 0, 2299]))]


def read(path: Path, dtype: str | None = None) -> list[int]:
    tokens = open_tokens(str(path), dtype, vocab_size=100)
    return tokens.read(0, len(tokens)).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_of_every_type_are_read(dtype: str, tmp_path: Path) -> None:
    IDS.astype(dtype).tofile(tmp_path / "tokens.bin")
    assert read(tmp_path / "tokens.bin", dtype) == IDS.tolist()
    np.save(tmp_path / "tokens.npy", IDS.astype(dtype))
    assert read(tmp_path / "tokens.npy") == IDS.tolist()


@pytest.mark.parametrize("shards", [1, 3])
def test_folders_of_hugging_face_are_read(shards: int, tmp_path: Path) -> None:
    rows = {"input_ids": ROWS, "attention_mask": [[1] * len(row) for row in ROWS]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set", num_shards=shards)
    assert read(tmp_path / "set") == IDS.tolist()


def test_a_selection_of_rows_is_read_as_saved(tmp_path: Path) -> None:
    chosen = datasets.Dataset.from_dict({"input_ids": ROWS}).select([4, 0])
    chosen.save_to_disk(tmp_path / "set")
    assert read(tmp_path / "set") == ROWS[4] + ROWS[0]


def test_a_folder_of_several_sets_names_them(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"input_ids": ROWS})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "sets")
    with pytest.raises(InputError, match=r"give the folder of one \(train, test\)"):
        read(tmp_path / "sets")
    assert read(tmp_path / "sets" / "train") == IDS.tolist()


def dataset(folder: Path, column: str, values: Any) -> Path:
    """A folder as Hugging Face's, with one column."""
    folder.mkdir()
    table = pa.table({column: values})
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.uint16())])
def test_columns_of_any_list_are_read(kind: pa.DataType, tmp_path: Path) -> None:
    assert read(dataset(tmp_path / "set", "input_ids", pa.array(ROWS, kind))) == IDS.tolist()
    fixed = pa.array(IDS.reshape(50, 100).tolist(), pa.list_(pa.int64(), 100))
    assert read(dataset(tmp_path / "fixed", "input_ids", fixed)) == IDS.tolist()


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("text", ["a"], "must have a column input_ids, got 'text'"),
        ("input_ids", [1, 2], "input_ids must be lists of integers, got int64"),
        ("input_ids", [[0.5]], "input_ids must be lists of integers, got list<"),
        ("input_ids", [[1], None], "input_ids must have no nulls"),
        ("input_ids", [[1, None]], "input_ids must have no nulls"),
        ("input_ids", [[1, 100]], "token ids must be from 0 to vocab_size - 1 = 99, got 100"),
        ("input_ids", pa.array([[]], pa.list_(pa.int32())), "must hold tokens, got none"),
    ],
)
def test_folders_without_tokens_are_refused(
    column: str, values: Any, sentence: str, tmp_path: Path
) -> None:
    folder = dataset(tmp_path / "set", column, values)
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
        read(folder)


@pytest.mark.parametrize(
    ("name", "content", "dtype", "sentence"),
    [
        ("a.bin", b"\1\0\2\0", None, "`data_dtype` must be given with a .bin file"),
        ("a.npy", b"", "uint16", "`data_dtype` is for .bin files only"),
        ("a.txt", b"text", "uint16", "`data_dtype` is for .bin files only"),
        ("a.bin", b"\1\0\2", "uint16", "must be a multiple of the 2 bytes of uint16, got 3"),
        ("a.bin", b"", "uint16", "must be a multiple of the 2 bytes of uint16, got 0"),
        ("a.bin", b"\1\0\xff\xff", "uint16", "token ids must be from 0 to .* 99, got 65535"),
        ("a.bin", b"\1\0\xff\xff", "int16", "token ids must be from 0 to .* 99, got -1"),
        ("a.npy", b"no array", None, "cannot read "),
        ("a.npy", b"\x93NUMPY\x01\x00", None, "cannot read "),
        (".", b"", "uint16", "`data_dtype` is for .bin files only"),
        ("none.bin", None, "uint16", "no such file"),
        ("none.npy", None, None, "no such file"),
        ("none", None, None, "no such file or folder"),
    ],
)
def test_files_that_are_no_tokens_are_refused(
    name: str, content: bytes | None, dtype: str | None, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None and name != ".":
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read(path, dtype)


@pytest.mark.parametrize("array", [np.zeros((2, 2), int), np.zeros(3), np.array(["a"]), [None]])
def test_arrays_of_other_things_are_refused(array: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asarray(array))
    with pytest.raises(InputError, match=r"must hold one dimension of integers|cannot read"):
        read(tmp_path / "a.npy")


def test_every_sample_is_seen_once_per_epoch_in_an_order_of_the_seed() -> None:
    tokens = ArrayTokens([np.arange(41)])
    samples = Shuffled(tokens, 4, seed=1)
    epochs = [[samples.sample(10 * e + i)[0] for i in range(10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(0, 40, 4)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])
    again = Shuffled(tokens, 4, seed=1)
    assert [again.sample(i)[0] for i in (25, 3)] == [epochs[2][5], epochs[0][3]]
    assert [Shuffled(tokens, 4, seed=2).sample(i)[0] for i in range(10)] != epochs[0]
    assert samples.sample(7).tolist() == list(range(epochs[0][7], epochs[0][7] + 5))


def test_too_few_tokens_for_a_sample_are_refused() -> None:
    assert Shuffled(ArrayTokens([np.arange(5)]), 4, seed=0).sample(3).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match=r"data must have at least sequence_length \+ 1 = 5"):
        Shuffled(ArrayTokens([np.arange(4)]), 4, seed=0)


def test_an_id_in_the_middle_that_is_not_in_the_vocabulary_is_refused_when_it_is_read() -> None:
    ids = np.zeros(100, int)
    ids[50] = 7
    samples = InVocabulary(InOrder(ArrayTokens([ids]), 10), 7, "validation_data")
    assert not samples.sample(3).any()
    for index in (4, 5):  # its last target, and the first input of the next
        with pytest.raises(InputError, match=r"validation_data: token ids must be from 0 to .* 6"):
            samples.sample(index)
