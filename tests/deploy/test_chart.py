"""What the chart makes of its values, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.charts import (
    CHART,
    DEPLOY,
    VALUES,
    cluster_specs,
    container,
    groups,
    helm,
    job_spec,
    of_kind,
    refused,
    rendered,
)

GIBIBYTE = 2**30


def values_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "values" / f"{name}.yaml").read_text())


# ---- values ----


@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing_wrong_with_a_file_of_values(name: str):
    done = helm("lint", "--strict", str(CHART), "--values", str(DEPLOY / "values" / f"{name}.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def misspelt(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each name of a tree with a letter more, and the tree in which it stands so."""
    if isinstance(value, dict):
        for name, inner in value.items():
            rest = {k: v for k, v in value.items() if k != name}
            yield f"{path}.{name}x", {**rest, f"{name}x": inner}
            for where, changed in misspelt(inner, f"{path}.{name}"):
                yield where, {**value, name: changed}
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            for where, changed in misspelt(inner, f"{path}[{number}]"):
                yield where, [*value[:number], changed, *value[number + 1 :]]


# Names that are the user's own.
FREE = re.compile(r"\.(nodeSelector|podLabels|matchLabels)\.")


@pytest.mark.parametrize("name", ["values", *VALUES])
def test_a_misspelt_name_is_refused_wherever_it_stands(name: str):
    file = CHART / "values.yaml" if name == "values" else DEPLOY / "values" / f"{name}.yaml"
    validator = jsonschema.Draft202012Validator(
        json.loads((CHART / "values.schema.json").read_text())
    )
    values = yaml.safe_load(file.read_text())
    assert validator.is_valid(values)
    tried = [(w, c) for w, c in misspelt(values) if not FREE.search(w)]
    assert len(tried) > 10
    assert [where for where, changed in tried if validator.is_valid(changed)] == []


def test_helm_lint_refuses_a_misspelt_file(tmp_path: Path):
    values = values_of("gpu-spot")
    values["workerGroups"][0]["maxReplica"] = values["workerGroups"][0].pop("maxReplicas")
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    done = helm("lint", str(CHART), "--values", str(file))
    assert done.returncode != 0
    assert "maxReplica" in done.stdout


def test_every_value_of_the_chart_has_its_place_in_the_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(yaml.safe_load((CHART / "values.yaml").read_text())) == set(schema["properties"]) - {
        "global"
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("sweep.arguments={sweep=other}",), "leave it out"),
        (("sweep.arguments={storage=/tmp}",), "leave it out"),
        (("sweep.arguments={--restart}",), "throw away"),
        (("sweep.schedule=0 3 * * 0",), "feature gate RayCronJob"),
        (("head.objectStore=6Gi",), "less than half of its memory"),
        (("workerGroups[0].minReplicas=3",), "minReplicas 3 above maxReplicas"),
        (("workerGroups[0].maxReplicas=0",), "nothing could work"),
        (("shutdown.drainSeconds=60",), "drainSeconds must be less"),
        (("mlflow.trackingUri=http://me:secret@mlflow:5000",), "trackingUri"),
        (("fullnameOverride=0first",), "must begin with a letter"),
        (("auth.mode=none",), "auth/mode"),
        (("serve.enabled=true",), "needs serve.heads"),
        (("serve.enabled=true", "serve.heads={a}", "cluster.enabled=true"), "share the name"),
        (("serve.enabled=true", "serve.heads={a}", "kueue.queue=research"), "queues no"),
        (("serve.limits.timout=3",), "timout"),
    ],
)
def test_values_that_cannot_work_are_refused_in_words(settings: tuple[str, ...], said: str):
    assert said in refused(*whole_group(settings))


def whole_group(settings: tuple[str, ...]) -> list[str]:
    """A list's entry that is set by its number replaces the list: the rest of it has to be said."""
    if not any(setting.startswith("workerGroups[0]") for setting in settings):
        return list(settings)
    group = yaml.safe_load((CHART / "values.yaml").read_text())["workerGroups"][0]
    simple = {k: v for k, v in group.items() if isinstance(v, str | int) and v != ""}
    said = [f"workerGroups[0].{name}={json.dumps(value)}" for name, value in simple.items()]
    return [*(word.replace('"', "") for word in said), *settings]


def test_kueue_is_not_promised_what_it_cannot_have():
    assert "deletionRules" in refused("kueue.queue=research", values="gpu-spot")
    schedule = ("sweep.schedule=0 3 * * 0", "operator.featureGates.RayCronJob=true")
    assert "RayCronJob" in refused("kueue.queue=research", *schedule)


def test_a_name_that_kuberay_would_cut_is_refused():
    assert "KubeRay allows 47" in refused(release="a" * 48)
    schedule = ("sweep.schedule=0 3 * * 0", "operator.featureGates.RayCronJob=true")
    assert "KubeRay allows 36" in refused(*schedule, release="a" * 37)


# ---- a sweep ----


@pytest.mark.parametrize("name", ["cpu-small", "gpu-spot", "kueue"])
def test_a_retry_goes_on_with_the_same_sweep(name: str):
    (job,) = of_kind(rendered(name), "RayJob")
    words = job["spec"]["entrypoint"].split()
    wanted = values_of(name)["sweep"].get("name", "first")
    assert words[:6] == ["python", "-m", "safe_ray.attempt", "python", "-m", "safe_ray.tune"]
    assert [word for word in words if word.startswith("sweep=")] == [f"sweep={wanted}"]
    assert job["spec"]["backoffLimit"] >= 1


@pytest.mark.parametrize("name", ["cpu-small", "gpu-spot", "kueue"])
def test_a_sweep_is_submitted_over_http_and_ends_some_day(name: str):
    (job,) = of_kind(rendered(name), "RayJob")
    spec = job["spec"]
    assert spec["submissionMode"] == "HTTPMode"
    assert spec["preRunningDeadlineSeconds"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] != ("deletionStrategy" in spec)
    assert ("ttlSecondsAfterFinished" in spec) == spec["shutdownAfterJobFinishes"]


def test_a_scheduled_run_is_a_sweep_of_its_own():
    settings = ("sweep.schedule=0 3 * * 0", "operator.featureGates.RayCronJob=true")
    (scheduled,) = of_kind(rendered(None, *settings), "RayCronJob")
    assert scheduled["spec"]["schedule"] == "0 3 * * 0"
    assert 'sweep="${RAY_CLUSTER_NAME%-*}"' in job_spec(scheduled)["entrypoint"]
    assert not of_kind(rendered(None, *settings), "RayJob")


def test_kueue_starts_what_bears_its_label():
    (job,) = of_kind(rendered("kueue"), "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert job["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    assert job["spec"]["suspend"] is True
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True


def test_without_elastic_jobs_kueue_grants_a_fixed_size():
    (job,) = of_kind(rendered("kueue", "kueue.elastic=false"), "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert "annotations" not in job["metadata"]
    assert cluster["enableInTreeAutoscaling"] is False
    (group,) = cluster["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 4


# ---- a cluster ----


@pytest.mark.parametrize("name", VALUES)
def test_the_ceiling_is_what_the_groups_may_grow_to(name: str):
    (cluster,) = cluster_specs(rendered(name))
    expected = []
    for group in cluster["workerGroupSpecs"]:
        limits, memory = container(group)["resources"]["limits"], group["rayStartParams"]["memory"]
        gpus = int(limits.get("nvidia.com/gpu", 0))
        expected.append(
            f"{{nodes: {group['maxReplicas']}, cpus: {limits['cpu']}, gpus: {gpus}, "
            f"memory: {int(memory) // 2**20}MiB}}"
        )
    ceiling = f"[{', '.join(expected)}]"
    jobs = of_kind(rendered(name), "RayJob")
    assert all(f"'cluster.ceiling={ceiling}'" in job["spec"]["entrypoint"] for job in jobs)
    said = {one["name"]: one["value"] for one in container(cluster["headGroupSpec"])["env"]}
    alone = of_kind(rendered(name), "RayCluster")
    assert not alone or said["SAFE_RAY_CEILING"] == ceiling
    assert jobs or alone or of_kind(rendered(name), "RayService")


@pytest.mark.parametrize("name", VALUES)
def test_shared_memory_is_counted_against_the_container(name: str):
    """The object store lies in /dev/shm, which KubeRay mounts from the container's memory."""
    for cluster in cluster_specs(rendered(name)):
        for group in groups(cluster):
            limit = container(group)["resources"]["limits"]["memory"]
            params = group["rayStartParams"]
            store, memory = int(params["object-store-memory"]), int(params["memory"])
            assert limit.endswith("Gi")
            assert store + memory == int(limit.removesuffix("Gi")) * GIBIBYTE
            assert store < memory


@pytest.mark.parametrize("name", VALUES)
def test_requests_are_limits(name: str):
    for cluster in cluster_specs(rendered(name)):
        for group in groups(cluster):
            resources = container(group)["resources"]
            assert resources["requests"] == resources["limits"]


@pytest.mark.parametrize("name", VALUES)
def test_the_head_offers_no_cpu_and_workers_come_from_zero(name: str):
    (cluster,) = cluster_specs(rendered(name))
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["autoscalerOptions"]["version"] == "v2"
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0
        assert group["maxReplicas"] > 0
        assert group["rayStartParams"]["num-cpus"] == container(group)["resources"]["limits"]["cpu"]


def test_gpus_are_limits_tolerated_and_marked_where_they_may_be_taken_away():
    (cluster,) = cluster_specs(rendered("gpu-spot"))
    spot, steady = cluster["workerGroupSpecs"]
    for group in (spot, steady):
        assert container(group)["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert group["rayStartParams"]["num-gpus"] == "1"
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in group[
            "template"
        ]["spec"]["tolerations"]
    assert spot["labels"] == {"ray.io/market-type": "spot"}
    assert steady["labels"] == {"ray.io/market-type": "on-demand"}
    assert spot["priority"] > steady.get("priority", 0)
    on_spot = spot["template"]["spec"]["nodeSelector"]
    assert on_spot != cluster["headGroupSpec"]["template"]["spec"]["nodeSelector"]


@pytest.mark.parametrize("name", VALUES)
def test_all_containers_run_one_image_and_one_version_of_ray(name: str):
    (cluster,) = cluster_specs(rendered(name))
    assert len({container(group)["image"] for group in groups(cluster)}) == 1
    constraints = (DEPLOY.parent / "constraints.txt").read_text()
    assert f"\nray=={cluster['rayVersion']}\n" in constraints


def test_the_image_is_named_by_digest_where_one_is_given():
    digest = f"sha256:{'0' * 64}"
    (cluster,) = cluster_specs(rendered(None, f"image.digest={digest}"))
    assert container(cluster["headGroupSpec"])["image"] == f"safe-ray@{digest}"


def test_the_chart_has_the_version_of_the_project():
    import safe_ray

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == safe_ray.__version__


def test_no_chart_is_fetched():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert "dependencies" not in chart
    assert not (CHART / "charts").exists()


def test_whoever_has_no_token_is_refused_unless_that_is_asked_for():
    (cluster,) = cluster_specs(rendered())
    assert cluster["authOptions"] == {"mode": "token", "secretName": "safe-ray-token"}
    (cluster,) = cluster_specs(rendered(None, "auth.mode=disabled"))
    assert cluster["authOptions"] == {"mode": "disabled"}
    said = {one["name"]: one.get("value") for one in container(cluster["headGroupSpec"])["env"]}
    assert said["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize("name", VALUES)
def test_a_pod_has_more_time_to_end_than_its_node_needs(name: str):
    (cluster,) = cluster_specs(rendered(name))
    for group in groups(cluster):
        said = {one["name"]: one["value"] for one in container(group)["env"]}
        grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace >= 60
        assert grace > int(said["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert int(said["RAY_JOB_STOP_WAIT_TIME_S"]) > 3


@pytest.mark.parametrize("name", VALUES)
def test_the_api_server_is_the_autoscalers_alone(name: str):
    (cluster,) = cluster_specs(rendered(name))
    head, *workers = (group["template"]["spec"] for group in groups(cluster))
    assert "automountServiceAccountToken" not in head
    assert all(worker["automountServiceAccountToken"] is False for worker in workers)


@pytest.mark.parametrize("name", VALUES)
def test_a_sweep_has_no_redis(name: str):
    """The driver dies with the head, so that nothing is won by what the head knew."""
    assert "redis" not in json.dumps(rendered(name)).lower()
    assert all("gcsFaultToleranceOptions" not in one for one in cluster_specs(rendered(name)))


# ---- a server ----


def serve_config(*settings: str) -> dict[str, Any]:
    (service,) = of_kind(rendered("serve", *settings), "RayService")
    return yaml.safe_load(service["spec"]["serveConfigV2"])


def test_a_server_is_an_application_of_the_image_and_fetches_nothing():
    (application,) = serve_config()["applications"]
    assert application["import_path"] == "safe_ray.serving.app:build"
    assert application["route_prefix"] == "/"
    assert "runtime_env" not in application


def test_ray_serve_takes_the_config_and_the_application_its_arguments():
    from ray.serve.schema import ServeDeploySchema

    from safe_ray.serving.app import NAME, build
    from safe_ray.serving.settings import Settings

    config = ServeDeploySchema.model_validate(
        serve_config("serve.limits.most_images=8", "serve.heads={outputs/a,/b,models:/c@best}")
    )
    assert config.http_options.host == "0.0.0.0"
    (application,) = config.applications
    settings = Settings.from_json(application.args)
    assert application.name == NAME
    assert settings.heads == ("/mnt/safe-ray/outputs/a", "/b", "models:/c@best")
    assert (settings.replicas, settings.cpus, settings.front_cpus) == (2, 3, 1)
    assert (settings.most_images, settings.timeout) == (8, 20)
    assert config.http_options.request_timeout_s > settings.timeout
    assert build(application.args) is not None


def test_a_server_fits_onto_its_nodes():
    (application,) = serve_config()["applications"]
    (cluster,) = cluster_specs(rendered("serve"))
    (group,) = cluster["workerGroupSpecs"]
    cpus = int(group["rayStartParams"]["num-cpus"])
    wanted = application["args"]
    assert wanted["cpus"] + wanted["front_cpus"] <= cpus
    assert wanted["replicas"] <= group["maxReplicas"]


def test_clients_find_the_port_of_a_server_by_its_name():
    (cluster,) = cluster_specs(rendered("serve"))
    ports = {
        one["name"]: one["containerPort"] for one in container(cluster["headGroupSpec"])["ports"]
    }
    assert ports["serve"] == serve_config()["http_options"]["port"]
    (other,) = cluster_specs(rendered("gpu"))
    assert "serve" not in [one["name"] for one in container(other["headGroupSpec"])["ports"]]


# ---- what helm says ----


def notes(name: str | None, *settings: str) -> str:
    words = ["install", "first", str(CHART), "--dry-run=client", "--namespace", "safe-ray"]
    words += ["--values", str(DEPLOY / "values" / f"{name}.yaml")] if name else []
    for setting in settings:
        words += ["--set", setting]
    done = helm(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:")[2]


def test_the_notes_say_how_to_follow_a_sweep():
    said = notes("cpu-small")
    assert "get rayjob first" in said
    assert "ray job logs" in said
    assert "STOPPED means that the command was refused" in said
    assert "storage.existingClaim=first-storage" in said


def test_the_notes_say_how_to_reach_a_server():
    said = notes("serve")
    assert "port-forward svc/first-serve-svc 8000" in said
    assert "networkPolicy.serveFrom" not in said
    assert "networkPolicy.serveFrom" in notes(None, "serve.enabled=true", "serve.heads={a}")


def test_the_notes_say_how_to_submit_to_a_cluster():
    said = notes("gpu")
    assert "port-forward svc/first-head-svc 8265" in said
    assert "RAY_AUTH_MODE=token" in said
    assert "ray job submit" in said
    assert "RayJob" not in said
