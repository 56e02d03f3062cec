"""Start ranks, join them to a job, and end all of them together when one fails, with one message."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import typer

from .checkpoint import last

VOICE = "DISTCOMPILE_VOICE"
"""Environment variable: a file that is created by the process that speaks for all."""
SAID = "said"
"""The content of the file when that process has spoken. If it ended before, the launcher speaks."""


def in_job() -> bool:
    """True if torchrun (or SLURM with several tasks) started this process as one of several."""
    return "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def launch(ranks: int, max_restarts: int, checkpoint: Path | None) -> int:
    """Start this same command under torchrun, on this machine.

    Args:
        ranks: processes to start on this machine.
        max_restarts: the number of times that torchrun starts all of them again after one failed.
        checkpoint: the file that they write, to be named if they fail.

    Returns:
        The exit code.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as torchrun

    from .loopback import meet_on_loopback

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # for the ranks, whose store warns with stack traces
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks have said what is wrong
    # -P: a folder called distcompile where the user stands must not hide the installed package.
    command = [sys.executable, "-P", "-m", "distcompile.app.cli", *sys.argv[1:]]
    options = [
        *meet_on_loopback(),
        f"--nproc-per-node={ranks}",
        f"--max-restarts={max_restarts}",
        "--no-python",
        "--",
        *command,
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.environ[VOICE] = f"{folder}/voice"
        try:
            torchrun(get_args_parser().parse_args(options))
        except ChildFailedError as failure:
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(max_restarts)
            rank, first = failure.get_first_failure()
            killed = [r for r, f in failure.failures.items() if f.exitcode == -signal.SIGKILL]
            if killed:
                _say_last(f"Rank {killed[0]} was lost: it was killed. {last(checkpoint)}".strip())
            else:
                _say_last(f"Rank {rank} ended with exit code {first.exitcode}. {last(checkpoint)}".strip())
            return max(1, *(f.exitcode for f in failure.failures.values()))
        except SignalException as interrupted:
            _say_last(f"Ended by {interrupted.sigval.name}. {last(checkpoint)}".strip())
            return 128 + interrupted.sigval
    return 0


@contextlib.contextmanager
def joined(checkpoint: Path | None) -> Iterator[None]:
    """Make this process one rank of a job that was started from outside.

    Only the first rank prints. If a rank fails, is killed or is stopped, all ranks end, and one gives the reason.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from .watch import Watch

    _adopt_slurm()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    store = PrefixStore(f"distcompile {restarts()}", store)  # torchrun keeps what ranks wrote before it restarted them
    watch = Watch(store, rank, size, say, lambda: last(checkpoint))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size)
    watch.start()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
            if rank > 0:  # one rank speaks
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            yield
    except BaseException as error:
        said = isinstance(error, typer.Exit) or (is_collective(error) and watch.wait())
        if not said:
            say(f"{_unexpected(error)} {last(checkpoint)}".strip(), True)
        watch.end()
        sys.stdout.flush()
        os._exit(
            error.exit_code if isinstance(error, typer.Exit) else 1
        )  # without waiting for other ranks, which may hang in a collective
    watch.end()
    dist.barrier()
    watch.stop()
    dist.destroy_process_group()


def stop(message: str) -> NoReturn:
    """End with a message, one line of it, instead of a traceback."""
    say(" ".join(message.split()))
    raise typer.Exit(1)


def stop_together(problem: str) -> None:
    """End all ranks if one has a problem. The first rank that has one reports it."""
    from ..runtime.world import default_world

    (problems,) = default_world().run(lambda comm: comm.all_gather_objects(problem))
    said = next(filter(None, problems), "")
    if said:
        stop(said)


def say(message: str, speaks: bool | None = None) -> None:
    """Print a message to standard error, once for all ranks.

    The first rank that speaks prints, and the others stay silent.

    Args:
        message: what to say.
        speaks: True if this rank speaks, in a job that `launch` did not start. If None, the first one to ask does.
    """

    def speak() -> None:
        print(f"distcompile: {message}", file=sys.stderr, flush=True)

    if VOICE in os.environ:
        # There is a file if another rank has spoken, and no folder if torchrun has ended.
        with contextlib.suppress(FileExistsError, FileNotFoundError), open(_voice(), "x") as voice:
            speak()
            voice.write(SAID)
    elif _asks_first() if speaks is None else speaks:
        speak()


def _asks_first() -> bool:
    """True if no other rank has asked this before, or if it cannot be known."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return int(os.environ.get("RANK", "0")) == 0
    try:
        return bool(dist.distributed_c10d._get_default_store().add("voice", 1) == 1)
    except RuntimeError:
        return True


def _voice() -> Path:
    return Path(f"{os.environ[VOICE]}.{restarts()}")


def _say_last(message: str) -> None:
    """Say something when all ranks have ended, unless one of them has finished a message."""
    if _voice().exists() and _voice().read_text() != SAID:
        _voice().unlink()
    say(message)


def restarts() -> int:
    """The number of times that torchrun has started this job again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _adopt_slurm() -> None:
    """Take rank and size from SLURM where torchrun did not set them."""
    for ours, slurm in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID")):
        if ours not in os.environ and slurm in os.environ:
            os.environ[ours] = os.environ[slurm]
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        stop("Set MASTER_ADDR and MASTER_PORT, or start the job with torchrun.")


def is_collective(error: BaseException) -> bool:
    """True if an error is a collective's error about a rank that is gone."""
    import torch.distributed as dist

    from ..errors import DistcompileError

    if not isinstance(error, RuntimeError) or isinstance(error, DistcompileError):
        return False
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "onnection", "NCCL", "socket")
    )


def _unexpected(error: BaseException) -> str:
    """An unexpected error in words, with the place that it came from; Ctrl-C is not an error."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    return "".join(traceback.format_exception(error)).rstrip()
