"""What the KubeRay operator refuses beyond the schemas of its kinds, restated from version 1.7.

An object with such a mistake is taken by the server, and then the operator does nothing with it but
write an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

LONGEST_CLUSTER = 53
LONGEST = {
    "RayCluster": LONGEST_CLUSTER,
    "RayJob": LONGEST_CLUSTER - 6,
    "RayService": LONGEST_CLUSTER - 6,
    "RayCronJob": LONGEST_CLUSTER - 6 - 11,
}
# In the order in which they may happen.
DELETIONS = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
Spec = Mapping[str, Any]


def mistakes(manifest: Spec, gates: Sequence[str] = ("RayJobDeletionPolicy",)) -> list[str]:
    """Return a line for everything that the operator would refuse.

    Args:
        manifest: a RayCluster, RayJob, RayCronJob or RayService.
        gates: the operator's feature gates that are on.
    """
    kind, spec = manifest["kind"], manifest["spec"]
    found = list(_name(manifest["metadata"]["name"], LONGEST[kind]))
    if kind == "RayCluster":
        return [*found, *_cluster(spec)]
    if kind == "RayJob":
        return [*found, *_job(spec, gates)]
    if kind == "RayService":
        return [*found, *_service(spec)]
    if "RayCronJob" not in gates:
        found.append("RayCronJob needs the feature gate RayCronJob")
    return [*found, *_schedule(spec), *_job(spec["jobTemplate"], gates)]


def _name(name: str, longest: int) -> Iterator[str]:
    if len(name) > longest:
        yield f"the name {name} is longer than {longest}"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name {name} is no DNS-1035 label"


def _service(spec: Spec) -> Iterator[str]:
    strategy = (spec.get("upgradeStrategy") or {}).get("type")
    if strategy not in (None, "NewCluster", "None", "NewClusterWithIncrementalUpgrade"):
        yield f"upgradeStrategy has no type {strategy}"
    if strategy == "NewClusterWithIncrementalUpgrade":
        yield "NewClusterWithIncrementalUpgrade needs a feature gate"
    if (spec.get("rayClusterDeletionDelaySeconds") or 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    cluster = spec["rayClusterConfig"]
    if (cluster["headGroupSpec"].get("headService") or {}).get("metadata", {}).get("name"):
        yield "the head's service is named by the operator"
    if not isinstance(yaml.safe_load(spec.get("serveConfigV2") or ""), dict):
        yield "serveConfigV2 is no mapping"
    yield from _cluster(cluster)


def _schedule(spec: Spec) -> Iterator[str]:
    if "TZ" in spec["schedule"]:
        yield "the schedule names a time zone"
    if len(spec["schedule"].split()) != 5 and not spec["schedule"].startswith("@"):
        yield "the schedule has not five fields"
    if spec.get("timeZone") == "":
        yield "timeZone is empty"


def _job(spec: Spec, gates: Sequence[str]) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    selects = bool(spec.get("clusterSelector"))
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    retries = spec.get("backoffLimit", 0)
    cluster = spec.get("rayClusterSpec")
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("suspend") and selects:
        yield "suspend and clusterSelector exclude each other"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is negative"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if cluster is None and not selects:
        yield "neither rayClusterSpec nor clusterSelector"
    if selects and mode == "SidecarMode":
        yield "SidecarMode and clusterSelector exclude each other"
    if selects and retries > 0:
        yield "backoffLimit and clusterSelector exclude each other"
    if mode == "InteractiveMode" and retries > 0:
        yield "backoffLimit and InteractiveMode exclude each other"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode has no submitter of its own"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field) is not None and spec[field] <= 0:
            yield f"{field} is not positive"
    if retries < 0:
        yield "backoffLimit is negative"
    environment = yaml.safe_load(spec.get("runtimeEnvYAML") or "{}")
    if not isinstance(environment, dict):
        yield "runtimeEnvYAML is no mapping"
    yield from _deletion(spec, gates)
    if cluster is not None:
        if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
            yield "a RayJob has no Kubernetes tokens"
        yield from _cluster(cluster)


def _deletion(spec: Spec, gates: Sequence[str]) -> Iterator[str]:
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    if "RayJobDeletionPolicy" not in gates:
        yield "deletionStrategy needs the feature gate RayJobDeletionPolicy"
    rules = strategy.get("deletionRules") or []
    legacy = [strategy[n] for n in ("onSuccess", "onFailure") if strategy.get(n) is not None]
    scales = (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling", False)
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if rules and legacy:
        yield "deletionRules and onSuccess or onFailure exclude each other"
    if not rules and len(legacy) != 2:
        yield "deletionStrategy needs deletionRules, or both onSuccess and onFailure"
    policies = [rule["policy"] for rule in rules] + [one.get("policy") for one in legacy]
    if scales and "DeleteWorkers" in policies:
        yield "DeleteWorkers and autoscaling exclude each other"
    if spec.get("clusterSelector") and {"DeleteWorkers", "DeleteCluster"} & set(policies):
        yield "a cluster that was there before is not deleted"
    if legacy and spec.get("shutdownAfterJobFinishes") and "DeleteNone" in policies:
        yield "DeleteNone and shutdownAfterJobFinishes exclude each other"
    seconds: dict[tuple[str, str], dict[str, int]] = {}
    for rule in rules:
        condition = rule["condition"]
        named = [n for n in ("jobStatus", "jobDeploymentStatus") if condition.get(n) is not None]
        if len(named) != 1:
            yield "a deletion rule needs one of jobStatus and jobDeploymentStatus"
            continue
        when = seconds.setdefault((named[0], condition[named[0]]), {})
        if rule["policy"] in when:
            yield f"two deletion rules for {rule['policy']} at {condition[named[0]]}"
        when[rule["policy"]] = condition.get("ttlSeconds", 0)
    for (_, status), when in seconds.items():
        waits = [when[policy] for policy in DELETIONS if policy in when]
        if waits != sorted(waits):
            yield f"deletion rules for {status} are out of order"


def _cluster(spec: Spec) -> Iterator[str]:
    scales = spec.get("enableInTreeAutoscaling", False)
    options = spec.get("autoscalerOptions") or {}
    second = scales and options.get("version") == "v2"
    head = spec["headGroupSpec"]
    variables = _variables(head)
    for group in (head, *spec.get("workerGroupSpecs", ())):
        yield from _group(group, scales, second)
    if not scales and variables.get("RAY_enable_autoscaler_v2") in ("1", "true"):
        yield "RAY_enable_autoscaler_v2 without enableInTreeAutoscaling"
    if scales and options.get("version") and "RAY_enable_autoscaler_v2" in variables:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "idleTimeoutSeconds is negative"
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in [one["name"] for one in options.get("env", ())]:
        yield "KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's"
    if "RAY_REDIS_ADDRESS" in variables and not spec.get("gcsFaultToleranceOptions"):
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    if "REDIS_USERNAME" in variables or "redis-username" in head.get("rayStartParams", {}):
        yield "the user of Redis belongs into gcsFaultToleranceOptions"
    version = tuple(int(part) for part in (spec.get("rayVersion") or "0").split(".")[:2])
    authentication = spec.get("authOptions") or {}
    if authentication.get("mode") == "token" and version < (2, 52):
        yield "tokens need rayVersion 2.52"
    if any(group.get("priority") for group in spec.get("workerGroupSpecs", ())):
        if version < (2, 56):
            yield "priority needs rayVersion 2.56"
        if not second:
            yield "priority needs the autoscaler v2"
    for field in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if spec.get(field) is not None:
            yield f"{field} needs a feature gate"


def _group(group: Spec, scales: bool, second: bool) -> Iterator[str]:
    name = group.get("groupName", "the head")
    pod, params = group["template"]["spec"], group.get("rayStartParams", {})
    if not pod.get("containers"):
        yield f"{name} has no container"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(params):
        yield f"{name} has resources twice"
    if "labels" in params:
        yield f"{name} has labels in rayStartParams"
    if second and pod.get("restartPolicy", "Never") != "Never":
        yield f"{name} is restarted by Kubernetes and by the autoscaler v2"
    if "groupName" not in group:
        return
    low, high = group.get("minReplicas"), group.get("maxReplicas")
    if not scales and (low is None or high is None):
        yield f"{name} needs minReplicas and maxReplicas without an autoscaler"
    if low is not None and (low < 0 or (high is not None and low > high)):
        yield f"{name} has minReplicas {low} and maxReplicas {high}"
    if group.get("idleTimeoutSeconds") is not None and not second:
        yield f"{name} has an idleTimeoutSeconds without the autoscaler v2"
    if group.get("suspend"):
        yield f"{name} is suspended"


def _variables(group: Spec) -> dict[str, str]:
    listed = group["template"]["spec"]["containers"][0].get("env", ())
    return {one["name"]: one.get("value", "") for one in listed}
