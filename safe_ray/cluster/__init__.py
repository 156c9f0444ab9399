"""The Ray cluster: joining or starting one, and sharing it out among trials."""

from safe_ray.cluster.connection import connect, connect_beside, is_local, join
from safe_ray.cluster.nodes import (
    ask_nodes,
    beacon,
    expect,
    is_elastic,
    label_selector,
    leave_out,
    planned_nodes,
    release_nodes,
    working_nodes,
    works_here,
)
from safe_ray.cluster.plan import TrialPlan, check_cpus, plan_trials
from safe_ray.cluster.resources import ClusterResources, Node
from safe_ray.cluster.tasks import run_on_node, spread
from safe_ray.cluster.waiting import Waiting

__all__ = [
    "ClusterResources",
    "Node",
    "TrialPlan",
    "Waiting",
    "ask_nodes",
    "beacon",
    "check_cpus",
    "connect",
    "connect_beside",
    "expect",
    "is_elastic",
    "is_local",
    "join",
    "label_selector",
    "leave_out",
    "plan_trials",
    "planned_nodes",
    "release_nodes",
    "run_on_node",
    "spread",
    "working_nodes",
    "works_here",
]
