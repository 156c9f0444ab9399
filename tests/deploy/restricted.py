"""The restricted profile of Kubernetes' pod security standards, for a pod or a pod's template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
HOST = ("hostNetwork", "hostPID", "hostIPC")
Security = Mapping[str, Any]


def breaches(spec: Mapping[str, Any]) -> list[str]:
    """Return a line for every way in which a pod's spec is outside of the profile."""
    pod = spec.get("securityContext", {})
    found = [f"{name} is set" for name in HOST if spec.get(name)]
    for volume in spec.get("volumes", ()):
        found += [f"the volume {volume['name']} is a {k}" for k in set(volume) - {"name"} - VOLUMES]
    if pod.get("sysctls"):
        found.append("sysctls are set")
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(kind, ()):
            own = container.get("securityContext", {})
            found += [f"{container['name']}: {line}" for line in container_breaches(own, pod)]
            if any("hostPort" in port for port in container.get("ports", ())):
                found.append(f"{container['name']}: a port of the host")
    return found


def container_breaches(own: Security, pod: Security) -> Iterator[str]:
    """Yield a line for every way in which a container's security context is outside of it."""
    if own.get("allowPrivilegeEscalation") is not False:
        yield "privileges may be escalated"
    if own.get("privileged"):
        yield "privileged"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield "capabilities are kept"
    if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "may run as root"
    user = own.get("runAsUser", pod.get("runAsUser"))
    # runAsNonRoot alone fails at the start for an image whose user is a name.
    if not isinstance(user, int) or user == 0:
        yield "has no number of a user, or root's"
    profile = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    if own.get("procMount", "Default") != "Default":
        yield "an unmasked /proc"
