"""Files with the figures of a device, as `distcompile plan` measures and reads them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ..files import replacing
from ..predict.planning import Device


def write_device(path: Path, device: Device) -> None:
    """Keep a measured device in a file, for other plans."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(dataclasses.asdict(device), indent=2) + "\n")


def read_device(path: Path) -> Device:
    """A device from a file.

    Raises:
        ValueError: the file is none of `write_device`.
    """
    try:
        found = json.loads(path.read_text())
        return Device(**{**found, "curve": tuple((float(b), float(s)) for b, s in found["curve"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the figures of a device: {error}.") from error
