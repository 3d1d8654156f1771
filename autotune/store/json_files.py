"""JSON files of a run directory, with their digests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import InputError, first_line
from autotune.inputs import LARGEST_TEXT, json_object, opened
from autotune.store.files import BLANK_DIGEST, DIGEST, check_digest, sealed


def read_json(file: Path, *, required: bool) -> tuple[dict[str, Any], bytes]:
    """The object in a JSON file, whose digest is checked, and the file's bytes."""
    with opened(file, largest=LARGEST_TEXT) as stream:
        raw = stream.read()
    try:
        check_digest(raw, required=required)
        content = json_object(raw.decode(), what=file.name)
    except ValueError as error:
        raise InputError(f"cannot read {str(file)!r}: {first_line(error)}") from None
    return content, raw


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """The content of a JSON file, with its digest as the last key."""
    text = json.dumps({**content, DIGEST: BLANK_DIGEST}, indent=2) + "\n"
    return sealed(text.encode())
