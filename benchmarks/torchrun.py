"""Jobs of several processes on this machine, as the benchmarks start them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def run(script: str, ranks: int, arguments: list[str]) -> dict[str, Any] | str:
    """What a job says: the one line of JSON that an object was written on, or why there is none.

    Args:
        script: the file that every rank runs; ranks other than the first print no object.
        ranks: how many.
        arguments: of the script.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run([*command, script, *arguments], capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    (row,) = found
    return dict(row)


def say(found: dict[str, Any] | None) -> None:
    """Print what `run` returns; None, on all ranks but the first, is not printed."""
    if found is not None:
        print(json.dumps(found), flush=True)
