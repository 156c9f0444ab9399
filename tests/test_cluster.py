"""Sharing a cluster out: a plan asks for nothing that is not there; joining is refused fast."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import safe_ray
from safe_ray.cluster import ClusterResources, TrialPlan, connect, plan_trials
from safe_ray.cluster.connection import authenticate
from safe_ray.cluster.plan import _READING_CPUS
from safe_ray.cluster.resources import Node, up_to_ceiling
from safe_ray.errors import InputError
from safe_ray.specs import NodeShape

GIGABYTE = 2**30


def cluster(*nodes: tuple[float, float]) -> ClusterResources:
    return ClusterResources(
        tuple(Node(cpus, gpus, 16 * GIGABYTE) for cpus, gpus in nodes), 80.0 * GIGABYTE
    )


def plan(resources: ClusterResources, **asked: object) -> TrialPlan:
    usual = {
        "workers": 1,
        "cpus_per_worker": "auto",
        "gpus_per_worker": "auto",
        "concurrent": "auto",
    }
    return plan_trials(resources, **{**usual, **asked})


nodes = st.lists(
    st.tuples(st.integers(1, 96).map(float), st.integers(0, 8).map(float)), min_size=1, max_size=5
)
auto = st.just("auto")
amounts = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 16.0])


@given(
    nodes=nodes,
    workers=st.integers(1, 24),
    cpus=auto | amounts,
    gpus=auto | st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]),
    concurrent=auto | st.integers(1, 50),
)
def test_a_plan_never_exceeds_the_cluster(nodes, workers, cpus, gpus, concurrent):
    resources = cluster(*nodes)
    try:
        made = plan(
            resources,
            workers=workers,
            cpus_per_worker=cpus,
            gpus_per_worker=gpus,
            concurrent=concurrent,
        )
    except InputError:
        return
    nested = workers > 1
    cpus_each = made.trial_cpus + (workers * made.cpus_per_worker if nested else 0)
    gpus_each = made.trial_gpus + (workers * made.gpus_per_worker if nested else 0)
    assert made.concurrent >= 1
    assert made.concurrent * cpus_each <= resources.cpus + 1e-6
    assert made.concurrent * gpus_each <= resources.gpus + 1e-6
    assert concurrent == "auto" or made.concurrent <= concurrent
    assert 1 <= made.threads <= max(1, made.cpus_per_worker)
    assert made.memory >= 0
    assert gpus == "auto" or made.gpus_per_worker == gpus
    assert cpus == "auto" or made.cpus_per_worker == cpus
    # Every worker stands on one node, so the workers must fit node by node too.
    places = [room(node, 0.0, made) for node in resources.nodes]
    assert made.concurrent * workers <= sum(places)
    # Wherever Ray puts the trials' own processes, the workers of one of them find their places.
    overhead = made.concurrent * (made.trial_cpus + _READING_CPUS) if nested else 0.0
    for place, node in zip(places, resources.nodes, strict=True):
        assert sum(places) - place + room(node, min(overhead, node.cpus), made) >= workers


def room(node: Node, taken: float, made: TrialPlan) -> int:
    """Workers that a node holds when that many of its CPUs are taken."""
    by_cpu = int((node.cpus - taken + 1e-5) / made.cpus_per_worker)
    if not made.gpus_per_worker:
        return by_cpu
    return min(by_cpu, int((node.gpus + 1e-5) / made.gpus_per_worker))


@given(nodes=nodes)
def test_as_many_workers_as_cores_always_fit_without_gpus(nodes):
    resources = cluster(*[(cpus, 0.0) for cpus, _ in nodes][:1])
    assert plan(resources, workers=int(resources.cpus)).concurrent == 1


def test_two_cores_train_two_banks_with_a_thread_each():
    made = plan(cluster((2, 0)))
    assert (made.concurrent, made.trial_cpus, made.trial_gpus, made.threads) == (2, 1, 0, 1)


def test_two_workers_on_two_cores_leave_room_for_the_trial_and_the_reading():
    made = plan(cluster((2, 0)), workers=2)
    assert made.concurrent == 1
    assert 2 * made.cpus_per_worker + made.trial_cpus < 2
    assert made.cpus_per_worker > 0.5


def test_a_worker_takes_a_gpu_where_there_are_some_and_its_share_of_the_cores():
    made = plan(cluster((16, 4)))
    assert (made.concurrent, made.trial_cpus, made.trial_gpus) == (4, 4, 1)


def test_gpus_can_be_shared():
    assert plan(cluster((16, 1)), gpus_per_worker=0.25, cpus_per_worker=1).concurrent == 4


def test_too_many_workers_are_refused_with_what_there_is_and_what_is_missing():
    with pytest.raises(InputError) as caught:
        plan(cluster((2, 0)), workers=16)
    said = str(caught.value)
    assert "training.workers=16" in said
    assert "2 CPUs and no GPU" in said
    assert "missing" in said
    assert "\n" not in said


def test_the_refusal_counts_what_the_trial_and_the_reading_take():
    with pytest.raises(InputError) as caught:
        plan(cluster((2, 0)), workers=4, cpus_per_worker=1.0)
    assert str(caught.value) == (
        "training.workers=4 needs 4.3 CPUs at once, but the cluster has 2 CPUs and no GPU on "
        "1 node (missing: 2.3 CPUs): ask for fewer workers, for less of training.cpus_per_worker "
        "or training.gpus_per_worker, or for a larger cluster."
    )


def test_a_node_with_many_cores_and_no_gpu_does_not_starve_the_one_with_gpus():
    made = plan(cluster((4, 4), (60, 0)))
    assert (made.concurrent, made.trial_cpus, made.trial_gpus) == (4, 1, 1)


def test_gpus_that_are_not_there_are_refused():
    with pytest.raises(InputError, match="missing: 1 GPU"):
        plan(cluster((8, 0)), gpus_per_worker=1)


def test_a_worker_larger_than_any_node_is_refused():
    with pytest.raises(InputError, match="no way to place them"):
        plan(cluster((4, 0), (4, 0)), cpus_per_worker=6)


def test_a_cluster_without_cpus_is_refused():
    with pytest.raises(InputError, match="no CPU"):
        plan(cluster((0, 1)))


def test_a_cluster_without_cpus_is_told_of_the_ceiling():
    with pytest.raises(InputError, match=r"cluster\.ceiling=\[\{nodes: 4, cpus: 8\}\]"):
        plan(ClusterResources(()))


shapes = st.lists(
    st.builds(
        NodeShape,
        st.integers(1, 4),
        st.sampled_from([1.0, 2.0, 8.0]),
        st.sampled_from([0.0, 1.0]),
        st.sampled_from([None, 8 * GIGABYTE]),
    ),
    max_size=3,
)
there = st.lists(
    st.builds(
        Node, st.sampled_from([1.0, 2.0, 8.0]), st.sampled_from([0.0, 1.0]), st.just(4 * GIGABYTE)
    ),
    max_size=6,
)


@given(there=there, ceiling=shapes)
def test_of_each_shape_there_may_be_as_many_as_the_ceiling_says_or_as_there_are(there, ceiling):
    nodes = up_to_ceiling(there, ceiling)
    assert list(nodes[: len(there)]) == there
    for size in {(node.cpus, node.gpus) for node in nodes}:
        alike = [shape.nodes for shape in ceiling if (shape.cpus, shape.gpus) == size]
        live = sum((node.cpus, node.gpus) == size for node in there)
        planned = sum((node.cpus, node.gpus) == size for node in nodes)
        assert planned == max(live, sum(alike))
    assert all(node.memory > 0 for node in nodes)


def test_memory_that_nobody_states_is_that_of_a_node_alike():
    shape = NodeShape(2, 8.0)
    assert up_to_ceiling([Node(8.0, 0.0, 5e9)], [shape])[1].memory == 5e9
    assert up_to_ceiling([Node(4.0, 0.0, 5e9)], [shape])[1].memory == 16 * GIGABYTE
    assert up_to_ceiling([], [NodeShape(1, 8.0, 0.0, GIGABYTE)])[0].memory == GIGABYTE


def test_a_group_of_gpus_of_which_none_is_there_is_planned_for():
    nodes = up_to_ceiling([Node(4.0, 0.0, 8e9)], [NodeShape(8, 16.0, 2.0)])
    made = plan(ClusterResources(nodes, 80.0 * GIGABYTE, coming=8))
    assert (made.concurrent, made.trial_gpus, made.trial_cpus) == (16, 1, 8)
    assert "132 CPUs and 16 GPUs on 9 nodes, 8 of them to come" in str(
        ClusterResources(nodes, coming=8)
    )


def test_a_local_ray_brings_no_nodes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="a local Ray has none"):
        connect(None, None, ceiling=[NodeShape(1, 1.0)])


def test_a_local_ray_gets_a_token_that_ends_with_it(tmp_path: Path):
    environment = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    authenticate(environment, joining=False)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert not (tmp_path / "none").exists()


def test_a_running_cluster_is_given_the_token_there_is(tmp_path: Path):
    token = tmp_path / "token"
    without = {"RAY_AUTH_TOKEN_PATH": str(token)}
    authenticate(without, joining=True)
    assert without["RAY_AUTH_MODE"] == "disabled"
    token.write_text("secret")
    environment = {"RAY_AUTH_TOKEN_PATH": str(token)}
    authenticate(environment, joining=True)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in environment


def test_what_the_user_says_about_authentication_stands():
    environment = {"RAY_AUTH_MODE": "disabled"}
    authenticate(environment, joining=False)
    assert environment == {"RAY_AUTH_MODE": "disabled"}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "no-such-host:6379"])
def test_an_address_without_a_cluster_is_refused_soon(address: str):
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        connect(address, None)
    assert address in str(caught.value)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:8265", "is not a cluster's own: write host:6379"),
        ("127.0.0.1", "has no port: write host:6379"),
        ("127.0.0.1:head", "has no port 'head'"),
        ("127.0.0.1:99999", "has no port '99999'"),
    ],
)
def test_what_cannot_be_a_clusters_address_is_refused(
    address: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=reason):
        connect(None, None)


def test_a_local_ray_is_private_and_leaves_nothing_in_the_home_folder(tmp_path: Path):
    """A process of its own, since it must be the first there to start Ray."""
    code = (
        "import ray\n"
        "from safe_ray.cluster import connect\n"
        "print(connect(None, 1))\n"
        "echo = ray.remote(lambda: __import__('os').environ['RAY_AUTH_MODE'])\n"
        "print(ray.get(echo.remote()))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(safe_ray.__file__).resolve().parent.parent,
        env={**environment, "HOME": str(tmp_path)},
    )
    assert result.stdout.splitlines() == ["1 CPU and no GPU on 1 node", "token"], result.stderr
    assert not (tmp_path / ".ray").exists()


def process(code: str, **environment: str) -> list[str]:
    """The lines that a process of its own prints, with nothing on standard error."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(safe_ray.__file__).resolve().parent.parent,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", **environment},
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_work_is_done_while_ray_starts():
    code = (
        "import signal, threading, ray\n"
        "from safe_ray.cluster import connect_beside\n"
        "from safe_ray.interruption import treat_sigterm_as_interrupt\n"
        "treat_sigterm_as_interrupt()\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "resources, found = connect_beside(None, 1, ray.is_initialized)\n"
        "print(resources, found, ray.get(ray.remote(lambda: 'works').remote()))\n"
        "print(signal.getsignal(signal.SIGTERM) is before)\n"
    )
    assert process(code) == ["1 CPU and no GPU on 1 node False works", "True"]


def test_what_the_work_beside_the_start_raises_is_raised():
    code = (
        "import ray\n"
        "from safe_ray.cluster import connect_beside\n"
        "from safe_ray.errors import InputError\n"
        "def load():\n"
        "    raise InputError('These weights are damaged.')\n"
        "try:\n"
        "    connect_beside(None, 1, load)\n"
        "except InputError as error:\n"
        "    print(ray.is_initialized(), error)\n"
    )
    assert process(code) == ["True These weights are damaged."]


def test_what_is_imported_while_ray_starts_is_not_what_ray_imports():
    """Two threads that import one package at the same time may find it half made."""
    start = "from safe_ray.cluster import connect; connect(None, 1)"
    beside = "import safe_ray.backbones.openclip"
    # What a sweep has imported before either.
    common = (
        "import sys, ray, safe_ray.compose, safe_ray.sweep.begin\nfrom mlflow import MlflowClient"
    )
    listed = "before = set(sys.modules)\n{}\nprint(*sorted(set(sys.modules) - before))"
    found = [set(process(f"{common}\n{listed.format(own)}")[-1].split()) for own in (start, beside)]
    of_ray, of_torch = (
        {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
        for names in found
    )
    assert "torch" in of_torch
    assert "grpc" in of_ray
    assert not of_ray & of_torch


@pytest.mark.slow
def test_a_plan_for_two_small_nodes_is_placed_on_them():
    """Two workers, two nodes of one core each: the trial and the reading find room beside them."""
    code = (
        "import ray\n"
        "from ray.cluster_utils import Cluster\n"
        "from ray.util.placement_group import placement_group\n"
        "from safe_ray.cluster import connect, plan_trials\n"
        "head = {'num_cpus': 1, 'include_dashboard': False}\n"
        "nodes = Cluster(initialize_head=True, head_node_args=head)\n"
        "nodes.add_node(num_cpus=1)\n"
        "resources = connect(nodes.address, None)\n"
        "plan = plan_trials(resources, 2, 'auto', 'auto', 'auto')\n"
        "trial = placement_group([{'CPU': plan.trial_cpus}])\n"
        "ray.get(trial.ready(), timeout=60)\n"
        "workers = placement_group([{'CPU': plan.cpus_per_worker}] * 2)\n"
        "ray.get(workers.ready(), timeout=60)\n"
        "read = ray.remote(num_cpus=0.2)(lambda: 'read')\n"
        "print(resources, plan.concurrent, ray.get(read.remote(), timeout=60), sep='; ')\n"
        "ray.shutdown()\n"
        "nodes.shutdown()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=Path(safe_ray.__file__).resolve().parent.parent,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )
    assert result.stdout.splitlines()[-1:] == ["2 CPUs and no GPU on 2 nodes; 1; read"], (
        result.stderr
    )


def test_rays_core_reads_its_settings_again_through_the_name_that_is_used():
    """The name is one of Ray's own: this says it first when a later Ray has none of it."""
    code = (
        "import os\n"
        "import ray\n"
        "from ray._raylet import Config\n"
        "from safe_ray.cluster.connection import _reread_environment\n"
        "before = Config.health_check_period_ms()\n"
        "os.environ['RAY_health_check_period_ms'] = str(before + 7)\n"
        "_reread_environment()\n"
        "print(Config.health_check_period_ms() - before)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(safe_ray.__file__).resolve().parent.parent,
    )
    assert result.stdout.split() == ["7"], result.stderr


@pytest.mark.parametrize(
    ("workers", "gpus", "reason"),
    [
        (1, 1.5, "training.gpus_per_worker=1.5 is no share that Ray gives out"),
        (2, 2.5, "training.gpus_per_worker=2.5 is no share that Ray gives out"),
        (2, 0.5, "training.workers=2 with training.gpus_per_worker=0.5 would put workers"),
    ],
)
def test_parts_of_gpus_that_no_worker_can_have_are_refused(workers: int, gpus: float, reason: str):
    with pytest.raises(InputError, match=reason):
        plan(cluster((64, 8)), workers=workers, gpus_per_worker=gpus)


def test_workers_with_whole_gpus_are_planned():
    assert plan(cluster((64, 8)), workers=4, gpus_per_worker=2).gpus_per_worker == 2


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that is there is found")
def test_every_node_with_a_gpu_is_asked_and_one_that_torch_does_not_find_is_named():
    """Ray believes what it is told about GPUs; the answers must come from the nodes themselves."""
    code = (
        "import os\n"
        "import ray\n"
        "from ray.cluster_utils import Cluster\n"
        "from safe_ray.cluster import ask_nodes, connect\n"
        "from safe_ray.errors import InputError\n"
        "head = {'num_cpus': 1, 'num_gpus': 2, 'include_dashboard': False}\n"
        "nodes = Cluster(initialize_head=True, head_node_args=head)\n"
        "nodes.add_node(num_cpus=1, num_gpus=1)\n"
        "nodes.add_node(num_cpus=1)\n"
        "try:\n"
        "    connect(nodes.address, None)\n"
        "except InputError as error:\n"
        "    print(error)\n"
        "with_gpus = [n for n in ray.nodes() if 'GPU' in n['Resources']]\n"
        "busy = ray.remote(num_gpus=1, num_cpus=0)(lambda: __import__('time').sleep(600))\n"
        "waiting = [busy.remote() for _ in range(3)]\n"
        "def node(): return ray.get_runtime_context().get_node_id()\n"
        "def hidden(): return os.environ.get('CUDA_VISIBLE_DEVICES') == ''\n"
        "print(ask_nodes(node, with_gpus) == [n['NodeID'] for n in with_gpus], len(with_gpus))\n"
        "print(ask_nodes(hidden, with_gpus))\n"
        "ray.shutdown()\n"
        "nodes.shutdown()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=Path(safe_ray.__file__).resolve().parent.parent,
        env={
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        },
    )
    refusal, answers, hidden = result.stdout.splitlines()[-3:]
    assert "Ray offers GPUs on the node 1" in refusal
    assert "torch finds none there" in refusal
    assert answers == "True 2", result.stderr
    assert hidden == "[False, False]"
