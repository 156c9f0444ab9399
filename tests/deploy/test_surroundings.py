"""What the chart puts around a cluster: storage, budgets of disruption, network rules."""

from __future__ import annotations

import json

import pytest

from tests.deploy.charts import Manifest, cluster_specs, container, groups, of_kind, rendered


def test_all_nodes_mount_a_claim_that_many_may_write_to():
    (claim,) = of_kind(rendered(), "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    (cluster,) = cluster_specs(rendered())
    assert mounted(cluster) == {claim["metadata"]["name"]}


def test_a_claim_that_is_there_is_used_and_none_is_made():
    manifests = rendered(None, "storage.existingClaim=mine", "data.existingClaim=images")
    assert not of_kind(manifests, "PersistentVolumeClaim")
    (cluster,) = cluster_specs(manifests)
    assert mounted(cluster) == {"mine", "images"}
    for group in groups(cluster):
        (data,) = [one for one in container(group)["volumeMounts"] if one["name"] == "data"]
        assert data["readOnly"] is True


def mounted(cluster: Manifest) -> set[str]:
    volumes = [one for group in groups(cluster) for one in group["template"]["spec"]["volumes"]]
    return {one["persistentVolumeClaim"]["claimName"] for one in volumes}


def selects(selector: Manifest, labels: Manifest) -> bool:
    return all(labels.get(name) == value for name, value in selector["matchLabels"].items())


def pods(manifests: list[Manifest]) -> list[tuple[str, Manifest]]:
    """Node type and labels of the pods, with those that KubeRay adds."""
    found = []
    for cluster in cluster_specs(manifests):
        for group in groups(cluster):
            kind = "worker" if "groupName" in group else "head"
            labels = group["template"]["metadata"]["labels"]
            found.append((kind, {**labels, "ray.io/node-type": kind}))
    return found


@pytest.mark.parametrize("settings", [(), ("cluster.enabled=true",)])
def test_the_head_of_each_part_is_not_evicted(settings: tuple[str, ...]):
    manifests = rendered(None, *settings)
    budgets = of_kind(manifests, "PodDisruptionBudget")
    assert all(budget["spec"]["minAvailable"] == 1 for budget in budgets)
    for kind, labels in pods(manifests):
        held = [one for one in budgets if selects(one["spec"]["selector"], labels)]
        assert len(held) == (kind == "head")


def test_pods_keep_the_labels_that_kuberays_services_select_by():
    for _, labels in pods(rendered(None, "cluster.enabled=true")):
        assert not [name for name in labels if name.startswith("app.kubernetes.io/")]


def policies(manifests: list[Manifest], kind: str) -> list[Manifest]:
    labels = next(labels for node, labels in pods(manifests) if node == kind)
    every = of_kind(manifests, "NetworkPolicy")
    return [one["spec"] for one in every if selects(one["spec"]["podSelector"], labels)]


def ways(specs: list[Manifest], direction: str, side: str) -> list[tuple[str, list[int]]]:
    """Who is let through by which ports: a peer in a word or two."""
    found = []
    for rule in (rule for spec in specs for rule in spec.get(direction, ())):
        ports = [port["port"] for port in rule.get("ports", ())]
        found += [(json.dumps(peer), ports) for peer in rule.get(side, [{}])]
    return found


def test_workers_hear_their_cluster_and_nobody_else():
    (policy,) = policies(rendered("gpu"), "worker")
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    ((who, ports),) = ways([policy], "ingress", "from")
    assert '"safe-ray/release": "first"' in who
    assert "namespaceSelector" not in who
    assert ports == []


def test_the_operator_and_whoever_is_named_reach_the_heads_port_and_no_other():
    extra = "networkPolicy.dashboardFrom[0].podSelector.matchLabels.app=proxy"
    heard = ways(policies(rendered("gpu", extra), "head"), "ingress", "from")
    outside = {who: ports for who, ports in heard if "safe-ray/release" not in who}
    assert len(outside) == 2
    assert all(ports == [8265] for ports in outside.values())
    assert any("kuberay-operator" in who and '"kuberay"' in who for who in outside)


def test_clients_and_the_operator_reach_a_servers_port():
    (policy,) = policies(rendered("serve"), "worker")
    heard = ways([policy], "ingress", "from")
    assert [ports for who, ports in heard if "ingress-nginx" in who] == [[8000]]
    of_head = ways(policies(rendered("serve"), "head"), "ingress", "from")
    operator = [ports for who, ports in of_head if "kuberay-operator" in who]
    assert sorted(operator) == [[8000], [8265]]
    closed = rendered("serve", "networkPolicy.serveFrom=null")
    assert [8000] not in [p for _, p in ways(policies(closed, "worker"), "ingress", "from")]


def test_nodes_reach_names_mlflow_and_storage():
    reached = ways(policies(rendered("gpu"), "worker"), "egress", "to")
    ports = {who: ports for who, ports in reached if "safe-ray/release" not in who}
    assert sorted(ports.values()) == [[53, 53], [443], [5000]]
    assert any("kube-dns" in who for who in ports)
    assert any('"mlflow"' in who for who in ports)


def test_nodes_reach_no_mlflow_where_there_is_none():
    reached = ways(policies(rendered(), "worker"), "egress", "to")
    assert [5000] not in [ports for _, ports in reached]


def test_the_autoscaler_reaches_the_api_server():
    found = [ports for _, ports in ways(policies(rendered("gpu"), "head"), "egress", "to")]
    assert [443, 6443] in found
    fixed = rendered("gpu", "autoscaling.enabled=false")
    assert [443, 6443] not in [p for _, p in ways(policies(fixed, "head"), "egress", "to")]


def test_the_way_out_may_be_closed():
    closed = rendered("gpu", "networkPolicy.outside.cidrs=null")
    reached = [who for who, _ in ways(policies(closed, "worker"), "egress", "to")]
    assert not [who for who in reached if "ipBlock" in who]
