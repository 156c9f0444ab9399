"""A server would take every object of the chart, and KubeRay would work with it."""

from __future__ import annotations

import copy
import json
import re

import jsonschema
import kubernetes_validate
import pytest

from tests.deploy import crd, kuberay, restricted
from tests.deploy.charts import CHART, VALUES, Manifest, cluster_specs, groups, of_kind, rendered

KUBERNETES = "1.37"
SCHEDULED = ("sweep.schedule=0 3 * * 0", "operator.featureGates.RayCronJob=true")
BOTH = ("cluster.enabled=true", "data.existingClaim=images", "mlflow.secretName=mlflow")
# What the files of values leave out.
MORE = {
    "defaults": (),
    "scheduled": (*SCHEDULED, "sweep.timeZone=Europe/Zurich"),
    "fixed size": ("autoscaling.enabled=false",),
    "both parts": BOTH,
    "open": ("auth.mode=disabled", "networkPolicy.enabled=false", "storage.existingClaim=mine"),
    "serving": (
        "serve.enabled=true",
        "serve.heads={outputs/first,models:/photos@best}",
        "serve.limits.most_images=8",
    ),
    "Kueue of a fixed size": ("kueue.queue=research", "cluster.enabled=true"),
}
CASES = [*VALUES, *MORE]


def manifests(case: str) -> list[Manifest]:
    return rendered(None, *MORE[case]) if case in MORE else rendered(case)


def of_ray(manifest: Manifest) -> bool:
    return manifest["apiVersion"].startswith("ray.io/")


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_own_objects_are_valid_to_the_last_field(case: str):
    own = [manifest for manifest in manifests(case) if not of_ray(manifest)]
    for manifest in own:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_kuberays_objects_are_valid_by_its_schemas_and_rules(case: str):
    ours = [manifest for manifest in manifests(case) if of_ray(manifest)]
    assert ours
    for manifest in ours:
        assert crd.violations(manifest) == []
        assert kuberay.mistakes(manifest, ("RayJobDeletionPolicy", "RayCronJob")) == []


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_valid_and_within_the_restricted_profile(case: str):
    for cluster in cluster_specs(manifests(case)):
        for group in groups(cluster):
            pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
            assert restricted.breaches(pod["spec"]) == []
        if cluster["enableInTreeAutoscaling"]:
            # KubeRay puts this container into the head's pod.
            own = cluster["autoscalerOptions"]["securityContext"]
            pod_wide = cluster["headGroupSpec"]["template"]["spec"]["securityContext"]
            assert list(restricted.container_breaches(own, pod_wide)) == []


def test_the_definitions_are_those_that_were_pinned():
    for kind in crd.DIGESTS:
        assert f"kind: {kind}".encode() in crd.definition(kind)


def altered(**changes: object) -> dict:
    """The default RayJob, with fields of its spec replaced; a dot goes down, None removes."""
    job = copy.deepcopy(dict(of_kind(rendered(), "RayJob")[0]))
    for path, value in changes.items():
        *above, last = ["spec", *path.split("__")]
        place = job
        for name in above:
            place = place[int(name) if name.isdigit() else name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return job


RULE = {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entryPoint": "x"}, r"entryPoint: unknown field"),
        ({"rayClusterSpec__headGroupSpec__template__spec__contaners": []}, "contaners: unknown"),
        ({"submissionMode": 3}, "submissionMode"),
        ({"rayClusterSpec__headGroupSpec": None}, "headGroupSpec"),
        ({"rayClusterSpec__authOptions__mode": "tokens"}, "tokens"),
        ({"preRunningDeadlineSeconds": 0}, "preRunningDeadlineSeconds"),
        (
            {"deletionStrategy": {"deletionRules": [RULE], "onSuccess": {"policy": "DeleteNone"}}},
            "legacy policies",
        ),
        (
            {"deletionStrategy": {"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]}},
            "JobStatus",
        ),
        ({"managedBy": "somebody"}, "managedBy"),
    ],
)
def test_the_schemas_refuse_what_a_server_would(changes: dict, said: str):
    found = crd.violations(altered(**changes))
    assert any(re.search(said, line) for line in found), found


def test_defaults_are_filled_in_before_rules_are_asked():
    filled = crd.defaulted(crd.schema("RayJob"), altered(submissionMode=None))
    assert filled["spec"]["submissionMode"] == "K8sJobMode"
    ports = filled["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert ports["ports"][0]["protocol"] == "TCP"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"submissionMode": "InteractiveMode"}, "InteractiveMode"),
        ({"clusterSelector": {"ray.io/cluster": "x"}, "submissionMode": "SidecarMode"}, "Sidecar"),
        ({"clusterSelector": {"ray.io/cluster": "x"}}, "backoffLimit and clusterSelector"),
        ({"deletionStrategy": {"deletionRules": [RULE]}}, "exclude each other"),
        (
            {
                "shutdownAfterJobFinishes": False,
                "ttlSecondsAfterFinished": 0,
                "deletionStrategy": {"deletionRules": [{**RULE, "policy": "DeleteWorkers"}]},
            },
            "DeleteWorkers and autoscaling",
        ),
        ({"shutdownAfterJobFinishes": False}, "ttlSecondsAfterFinished needs"),
        ({"suspend": True, "shutdownAfterJobFinishes": False}, "suspend needs"),
        ({"rayClusterSpec": None}, "neither"),
        ({"rayClusterSpec__rayVersion": "2.40.0"}, "tokens need"),
        ({"rayClusterSpec__headGroupSpec__template__spec__restartPolicy": "Always"}, "restarted"),
        ({"rayClusterSpec__workerGroupSpecs__0__minReplicas": 9}, "minReplicas 9"),
        ({"rayClusterSpec__autoscalerOptions__version": "v1"}, "without the autoscaler v2"),
    ],
)
def test_the_rules_refuse_what_the_operator_would(changes: dict, said: str):
    found = kuberay.mistakes(altered(**changes))
    assert any(said in line for line in found), found


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ({"allowPrivilegeEscalation": True}, "escalated"),
        ({"capabilities": {}}, "kept"),
        ({"capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE"]}}, "added"),
        ({"runAsNonRoot": False}, "root"),
        ({"runAsUser": 0}, "root's"),
        ({"seccompProfile": {"type": "Unconfined"}}, "seccomp"),
    ],
)
def test_the_profile_refuses_what_a_namespace_would(container: dict, said: str):
    pod = altered()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    pod["containers"][0]["securityContext"] |= container
    assert any(said in line for line in restricted.breaches(pod))
    assert restricted.breaches(
        {**pod, "hostNetwork": True, "volumes": [{"hostPath": {}, "name": "x"}]}
    )


def test_a_misspelt_field_of_kubernetes_is_refused():
    policy = dict(of_kind(rendered(), "NetworkPolicy")[0])
    policy["spec"] = {**policy["spec"], "ingres": []}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(policy, KUBERNETES, strict=True)


def test_the_schema_of_the_values_is_one():
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
