"""The Ray cluster: joining or starting one, and sharing it out among trials."""

from safe_ray.cluster.connection import connect, connect_beside, is_local
from safe_ray.cluster.nodes import ask_nodes, label_selector, working_nodes
from safe_ray.cluster.plan import TrialPlan, plan_trials
from safe_ray.cluster.resources import ClusterResources

__all__ = [
    "ClusterResources",
    "TrialPlan",
    "ask_nodes",
    "connect",
    "connect_beside",
    "is_local",
    "label_selector",
    "plan_trials",
    "working_nodes",
]
