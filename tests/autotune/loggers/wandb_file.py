"""Reads the file that wandb writes offline: LevelDB's log format, with a header of seven bytes.

wandb reads it with a program of its own, which only sends it to a server.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_FILE_HEADER = b":W&B"
_FILE_HEADER_LENGTH = 7
_BLOCK = 32 * 1024
_RECORD_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records_in(file: Path) -> Iterator[Any]:
    """The records of the file."""
    content = file.read_bytes()
    assert content.startswith(_FILE_HEADER), content[:_FILE_HEADER_LENGTH]
    position, parts = _FILE_HEADER_LENGTH, b""
    while position + _RECORD_HEADER.size <= len(content):
        if _BLOCK - position % _BLOCK < _RECORD_HEADER.size:
            position += _BLOCK - position % _BLOCK  # the rest of a block is padding
            continue
        _, length, kind = _RECORD_HEADER.unpack_from(content, position)
        position += _RECORD_HEADER.size
        assert kind in (_FULL, _FIRST, _MIDDLE, _LAST), kind
        parts += content[position : position + length]
        position += length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
