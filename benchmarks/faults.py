"""Kill or stop a rank at a random moment, again and again: no hang, no orphan, every run can go on to the same end.

python benchmarks/faults.py 20
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from runs import Run, check_resumes, one_message


def once(chance: random.Random) -> str:
    """One run that loses a rank; what happened."""
    ranks, how = chance.choice([2, 3]), chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), "--steps", "1000000", ranks=ranks)
        try:
            processes = run.after_a_checkpoint()
            time.sleep(2 * chance.random())
            victim = chance.randrange(ranks)
            start = time.perf_counter()
            os.kill(processes[victim], how)
            code, _, stderr = run.end(within=30)
            seconds = time.perf_counter() - start
            said = one_message(stderr)
            assert code == 1
            assert f"Rank {victim} was lost" in said, said
            check_resumes(Path(folder) / "c.npz", 20)
        finally:
            run.clean()
    return f"{how.name} of rank {victim} of {ranks}: ended after {seconds:.1f} s. {said}"


def main(times: int) -> None:
    """Do it `times` times."""
    for number in range(times):
        print(f"{number + 1:3d}  {once(random.Random(number))}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
