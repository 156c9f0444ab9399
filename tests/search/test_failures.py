"""What keeps a bank from being trained is told by its cause, however many libraries it crossed."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError, RayTaskError
from ray.train.v2.api.exceptions import WorkerGroupError
from safetensors import SafetensorError
from safetensors.torch import save_file

from safe_ray.errors import BlindNodeError, InputError
from safe_ray.files import write_atomically
from safe_ray.search.failures import Attempts, Failure, Kind, death_of, failure_of
from safe_ray.training.distributed import LostNodeError


def raised(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def wrapped(cause: BaseException) -> InputError:
    """As `safe_ray.files.replacing` raises it."""
    try:
        raise InputError(f"Could not write /sweep/x ({cause}): free some space there.") from cause
    except InputError as error:
        return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_known_through_every_wrapping(number: int) -> None:
    for error in (
        raised(number),
        wrapped(raised(number)),
        RayTaskError("train", "Traceback", raised(number)).as_instanceof_cause(),
        WorkerGroupError("rank 1 failed", {1: wrapped(raised(number))}),
        SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error)"),
        pa.ArrowException(f"Error writing bytes to file: {os.strerror(number)}"),
    ):
        failure = failure_of(error)
        assert failure.kind == "disk", error
        assert failure.is_final
        assert os.strerror(number) in failure.reason
        assert "\n" not in failure.reason


WRITES = {
    "a text": "write_atomically(file, 'x' * 100_000)",
    "tensors": "save_file({'x': torch.zeros(100_000)}, file)",
}


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.parametrize("what", WRITES)
def test_a_write_that_the_system_refuses_is_a_full_disk(tmp_path: Path, what: str) -> None:
    """The limit on the size of files stands for a full disk: the same calls fail."""
    code = (
        "import signal, sys; from pathlib import Path\n"
        f"from {__name__} import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "limited()\n"
        "file = Path(sys.argv[1])\n"
        "try:\n"
        f"    {WRITES[what]}\n"
        "except Exception as error:\n"
        "    print(failure_of(error).kind)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "file")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "disk\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        raised(errno.ENOMEM),
    ],
)
def test_too_little_memory_may_be_tried_again(error: BaseException) -> None:
    failure = failure_of(error)
    assert failure.kind == "memory"
    assert not failure.is_final


def test_a_sentence_for_a_person_is_kept_and_not_tried_again() -> None:
    failure = failure_of(RayTaskError("train", "Traceback", InputError("Do this: that.")))
    assert failure == Failure("input", "Do this: that")
    assert failure.is_final


def test_anything_else_is_its_own_first_line() -> None:
    assert failure_of(ValueError("shapes differ\nby much")) == Failure(
        "error", "ValueError: shapes differ"
    )
    assert failure_of(KeyError()).reason == "KeyError"
    assert len(failure_of(ValueError("x" * 5000)).reason) < 300


def test_how_a_process_died_is_read_from_what_ray_says() -> None:
    lost = death_of("The actor is dead because its node has died.")
    assert lost == Failure("node", "its node died")
    assert not lost.counts
    assert death_of("Worker exits with a connection error code 2.").reason == "its process died"
    assert death_of("killed due to the node running low on memory").kind == "memory"
    assert death_of("").kind == "died"
    assert death_of("").counts


def test_a_worker_whose_node_is_gone_is_known_among_the_others_that_fail_for_it() -> None:
    others = RuntimeError("Connection closed by peer")
    gone = RayActorError("0123", "The actor died because its node has died. Node Id: 0123")
    assert failure_of(WorkerGroupError("2 failed", {0: others, 1: gone})).kind == "node"
    assert failure_of(WorkerGroupError("1 failed", {0: others})).kind == "error"
    assert failure_of(LostNodeError("a node has gone")).kind == "node"


def test_a_node_that_does_not_see_the_storage_is_named_through_every_wrapping() -> None:
    blind = BlindNodeError("10.0.0.7", "/storage: No such file or directory", "abc")
    for error in (
        blind,
        RayTaskError("train", "Traceback", blind).as_instanceof_cause(),
        WorkerGroupError("rank 1 failed", {1: pickle.loads(pickle.dumps(blind))}),
    ):
        failure = failure_of(error)
        assert (failure.kind, failure.node) == ("blind", "abc")
        assert "10.0.0.7 does not see the storage" in failure.reason
        assert "abc" not in failure.reason
        assert not failure.is_final
        assert not failure.counts
    # All that Tune keeps of a trial that could report nothing is a text.
    assert death_of(f"Failure # 1\nTraceback\n  BlindNodeError: {blind}\n").node == "abc"


@given(
    kinds=st.lists(st.sampled_from(["error", "died", "memory", "node"]), max_size=20),
    most=st.integers(0, 4),
)
def test_a_bank_is_tried_again_until_its_own_failures_are_too_many(
    kinds: list[Kind], most: int
) -> None:
    attempts = Attempts()
    again = [attempts.again(Failure(kind, ""), most) for kind in kinds]
    own = [sum(kind != "node" for kind in kinds[: i + 1]) for i in range(len(kinds))]
    assert again == [failed <= most for failed in own]


def test_a_failure_survives_the_way_to_the_driver() -> None:
    failure = Failure("memory", "MemoryError")
    assert Failure.from_json(failure.to_json()) == failure


__all__ = ["Path", "failure_of", "limited", "save_file", "torch", "write_atomically"]
