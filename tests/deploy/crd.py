"""Objects of KubeRay's kinds, checked as an API server checks them when they are created.

Defaults are filled in first. A field that the schema does not know is refused, which a server does
where it is asked for strict validation, as kubectl does. Then come types and bounds, keys of lists,
and the rules in CEL.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cel
import jsonschema
import yaml

FOLDER = Path(__file__).parent / "crds"
DIGESTS = {
    "RayCluster": "c44704442eef0c6721ad40c1d66782c8bd3fdab9d3344306a5820910a679baa1",
    "RayCronJob": "31c2c753bba01f7e8e89cb8e8c504131b58ee42090ca536d87f5ac27605a568e",
    "RayJob": "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5",
    "RayService": "0a8fc325e6e22b9231c1f282b309555e2ecf94227ca20a03df3d1d9a403907ab",
}
Schema = Mapping[str, Any]


@functools.cache
def definition(kind: str) -> bytes:
    """Return the YAML of a kind's definition, compared with its digest."""
    text = lzma.decompress((FOLDER / f"ray.io_{kind.lower()}s.yaml.xz").read_bytes())
    assert hashlib.sha256(text).hexdigest() == DIGESTS[kind]
    return text


@functools.cache
def schema(kind: str, version: str = "v1") -> Schema:
    """Return the schema of a version of a kind."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(definition(kind), Loader=loader)["spec"]["versions"]
    return next(one for one in versions if one["name"] == version)["schema"]["openAPIV3Schema"]


def violations(manifest: Mapping[str, Any]) -> list[str]:
    """Return a line for everything that a server would refuse; none if it would take the object."""
    version = manifest["apiVersion"].removeprefix("ray.io/")
    known = schema(manifest["kind"], version)
    value = defaulted(known, manifest)
    return [*_unknown(known, value, ""), *_wrong(known, value), *_rules(known, value, "")]


def defaulted(known: Schema, value: Any) -> Any:
    """Return a copy in which the schema's defaults stand where nothing was said."""
    if isinstance(value, Mapping):
        fields = known.get("properties", {})
        filled = {
            name: copy.deepcopy(field["default"])
            for name, field in fields.items()
            if "default" in field and name not in value
        }
        return {
            name: defaulted(_field(known, name) or {}, item)
            for name, item in {**value, **filled}.items()
        }
    if isinstance(value, list):
        return [defaulted(known.get("items", {}), item) for item in value]
    return value


def _field(known: Schema, name: str) -> Schema | None:
    more = known.get("additionalProperties")
    return known.get("properties", {}).get(name, more if isinstance(more, Mapping) else None)


def _children(known: Schema, value: Any, path: str) -> Iterator[tuple[Schema, Any, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield _field(known, name) or {}, item, f"{path}.{name}"
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield known.get("items", {}), item, f"{path}[{number}]"


def _unknown(known: Schema, value: Any, path: str) -> Iterator[str]:
    # metadata is the server's own, and a schema of one type alone says nothing about its fields.
    open_ended = path == ".metadata" or known.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(value, Mapping) and not open_ended:
        yield from (f"{path}.{n}: unknown field" for n in value if _field(known, n) is None)
    if not open_ended:
        for inner, item, where in _children(known, value, path):
            yield from _unknown(inner, item, where)


def _wrong(known: Schema, value: Any) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(known).iter_errors(value):
        yield f"{error.json_path}: {error.message}"
    yield from _repeated(known, value, "")


def _repeated(known: Schema, value: Any, path: str) -> Iterator[str]:
    keys = known.get("x-kubernetes-list-map-keys")
    if keys and isinstance(value, list):
        entries = [tuple(item.get(key) for key in keys) for item in value]
        yield from (f"{path}: {e} stands twice" for e in set(entries) if entries.count(e) > 1)
    for inner, item, where in _children(known, value, path):
        yield from _repeated(inner, item, where)


def _rules(known: Schema, value: Any, path: str) -> Iterator[str]:
    for rule in known.get("x-kubernetes-validations", ()):
        # What compares with the value before has nothing to say when an object is created.
        if (
            "oldSelf" not in rule["rule"]
            and cel.evaluate(rule["rule"], {"self": value}) is not True
        ):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    for inner, item, where in _children(known, value, path):
        yield from _rules(inner, item, where)
