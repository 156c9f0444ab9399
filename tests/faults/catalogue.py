"""All kinds of fault, and what the program promises about each."""

from __future__ import annotations

from collections.abc import Iterable

from tests.faults import disks, inputs, nodes, processes, trackers
from tests.faults.disks import full_at
from tests.faults.lab import Kind

_SAME = "same summary, by the same command"
_GOES_ON = "same summary, in the same run"
_SAID = "one sentence; the same command goes on, and the summary is the same"
_REPLAYED = "the report comes all the same; the same command gives MLflow what it has missed"

_SURVIVAL = "tests/sweep/test_survival.py::test_"
_SWEEP = "tests/sweep/test_sweep.py::test_a_sweep_interrupted_then_killed"
_INTERRUPTED = f"{_SWEEP}_ends_with_the_same_summary"
_STOPPED = "tests/test_job_submission.py::test_a_stopped_job_leaves_its_sentence_in_the_log"
_WRITER = "tests/tracking/test_writer.py::test_a_server_that_"
_NEIGHBOURS = (
    "tests/training/test_loop.py::test_a_member_that_diverges_is_marked_and_the_others_go_on"
)

KINDS = (
    Kind("worker killed in extraction", _GOES_ON, processes.kill_extraction_worker),
    Kind("worker killed in training", _GOES_ON, processes.kill_training_worker),
    Kind("worker killed in evaluation", _GOES_ON, processes.kill_evaluation_worker),
    Kind(
        "raylet killed",
        _SAID,
        processes.kill_raylet,
        elsewhere=f"{_SURVIVAL}a_dead_raylet_is_one_sentence_and_the_same_command_goes_on",
    ),
    Kind("node removed", _GOES_ON, nodes.remove_node, nodes.three_nodes),
    Kind("node added", _GOES_ON, nodes.add_node, nodes.three_nodes),
    Kind("node drained with notice", _GOES_ON, nodes.drain_node, nodes.three_nodes),
    Kind(
        "node cut off from the network for a minute",
        _GOES_ON,
        nodes.cut_off_node,
        nodes.three_hosts,
    ),
    Kind("driver killed", _SAME, processes.kill_driver, elsewhere=_INTERRUPTED),
    Kind("SIGTERM", _SAID, processes.terminate_driver, elsewhere=_STOPPED),
    Kind("Ctrl-C", _SAID, processes.interrupt_driver, elsewhere=_INTERRUPTED),
    Kind("object store full", _GOES_ON, nodes.fill_object_store, nodes.three_nodes),
    Kind(
        "disk full: feature store",
        _SAID,
        full_at(("admitted", "named", "one part"), disks.store_folder, 2**15),
        disks.store_on_small_disk,
    ),
    Kind(
        "disk full: checkpoint",
        _SAID,
        full_at(("bank begun", "checkpoint"), disks.banks_folder, 2**20),
        disks.banks_on_small_disk,
        elsewhere=f"{_SURVIVAL}a_disk_that_fills_up_ends_the_search_in_a_sentence",
    ),
    Kind(
        "disk full: head",
        _SAID,
        full_at(("bank begun",), disks.banks_folder, 2**20),
        disks.heads_on_small_disk,
    ),
    Kind(
        "disk full: MLflow artifact",
        _REPLAYED,
        full_at(("admitted", "named", "one bank"), disks.artifacts_folder, 2**20, ends=False),
        disks.artifacts_on_small_disk,
    ),
    Kind(
        "store file torn",
        "named, set aside and extracted again; same summary",
        disks.is_set_aside,
        disks.with_parts(disks.tear),
    ),
    Kind(
        "store file with a flipped bit",
        "named, set aside and extracted again; same summary",
        disks.is_set_aside,
        disks.with_parts(disks.flip),
    ),
    Kind(
        "candidates whose loss is NaN",
        "left out and counted; their neighbours learn as if alone",
        inputs.diverge,
        inputs.diverging_candidates,
        elsewhere=_NEIGHBOURS,
    ),
    Kind(
        "corrupt image among good ones",
        "refused in a sentence that names it, before anything runs; same summary once restored",
        inputs.corrupt_image,
        inputs.own_images,
    ),
    Kind(
        "MLflow down at the start",
        _REPLAYED,
        trackers.from_the_start("down"),
        trackers.behind_a_door,
        elsewhere=f"{_WRITER}is_down_throughout_is_one_sentence_and_the_next_run_brings_all",
    ),
    Kind(
        "MLflow down in the middle",
        _REPLAYED,
        trackers.from_a_moment("down", "bank begun", "one bank", "two banks"),
        trackers.behind_a_door,
        elsewhere=f"{_SURVIVAL}an_mlflow_server_that_is_lost_costs_no_result_and_gets_them_from_the_next_run",
    ),
    Kind(
        "MLflow down at the end",
        _REPLAYED,
        trackers.from_a_moment("down", "searched", "one test part"),
        trackers.behind_a_door,
    ),
    Kind(
        "MLflow slow (10 s an answer)",
        _REPLAYED,
        trackers.from_a_moment("slow", "named", "bank begun", "one bank"),
        trackers.behind_a_door,
    ),
    Kind(
        "MLflow refusing (403)",
        _REPLAYED,
        trackers.from_the_start("refusing"),
        trackers.behind_a_door,
        elsewhere=f"{_WRITER}refuses_everybody_is_one_sentence",
    ),
    Kind(
        "two sweeps of one name at once",
        "the second is refused in a sentence, the first goes on",
        inputs.second_of_the_name,
    ),
    Kind(
        "read-only store shared by two sweeps",
        "both read it; same summary twice",
        inputs.share_store,
        inputs.read_only_store,
    ),
    Kind("clock jump (up to 400 days, either way)", _GOES_ON, inputs.jump, inputs.clock),
)

# In the tests, one sweep bears several kinds: each line is done to one, in this order.
CHAINS = {
    "names": ["two sweeps of one name at once"],
    "processes": [
        "worker killed in extraction",
        "worker killed in training",
        "clock jump (up to 400 days, either way)",
        "worker killed in evaluation",
    ],
    "disks": [
        "corrupt image among good ones",
        "disk full: feature store",
        "disk full: MLflow artifact",
        "disk full: head",
    ],
    "stored maps": ["store file torn", "store file with a flipped bit"],
    "shared maps": ["read-only store shared by two sweeps"],
    "trackers": [
        "MLflow slow (10 s an answer)",
        "MLflow down at the end",
    ],
}
ON_NODES = (
    "object store full",
    "node added",
    "node drained with notice",
    "node removed",
    "node cut off from the network for a minute",
)


def kinds_of(names: Iterable[str]) -> list[Kind]:
    """Return the kinds of some names, in their order."""
    by_name = {kind.name: kind for kind in KINDS}
    return [by_name[name] for name in names]
