"""What a server is told: plain values that travel as JSON, in a RayService, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from safe_ray.errors import InputError, nearest

_Count = Annotated[int, Field(ge=1, le=100_000)]
_Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """What a server serves, with how much, and how far it lets its clients go.

    Attributes:
        heads: folders of sweeps or of heads, and models of MLflow, as
            `safe_ray.prediction.heads.find_heads` takes them.
        replicas: how many processes hold the trunk.
        cpus: threads, and Ray's CPUs, of each of them.
        gpus: Ray's GPUs of each of them, at most one; with any it computes on the GPU.
        front_cpus: Ray's CPUs of the process that speaks HTTP and decodes images.
        heads_in_memory: how many heads a replica keeps; the one that was used last the longest ago
            is dropped.
        batch: images that pass the trunk together.
        most_images: of a request.
        most_bytes: of a request's body.
        most_pixels: of an image, decoded.
        at_once: requests that are worked at.
        queue: requests that wait beside these; what comes then is refused with 429.
        timeout: seconds that a request may take, its upload included.
        reload: seconds between two looks at whether heads have moved.
        trusted: modules of other packages that heads may name.
    """

    heads: Annotated[tuple[str, ...], Field(min_length=1)]
    replicas: _Count = 1
    cpus: _Count = 1
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    front_cpus: Annotated[float, Field(ge=0)] = 0.0
    heads_in_memory: _Count = 64
    batch: _Count = 32
    most_images: _Count = 32
    most_bytes: Annotated[int, Field(ge=1)] = 64 * 2**20
    most_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    at_once: _Count = 64
    queue: _Count = 64
    timeout: _Seconds = 30.0
    reload: _Seconds = 5.0
    trusted: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """Return settings that come from elsewhere, such as the arguments in a Serve config.

        Where they come from a command line all are text, and `heads` has commas in between.

        Raises:
            InputError: a name that there is not, or a value that may not be.
        """
        try:
            heads = values.get("heads")
            listed = {"heads": heads.split(",")} if isinstance(heads, str) else {}
            return TypeAdapter(cls).validate_python({**values, **listed})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            near = nearest(name, cls.__dataclass_fields__)
            raise InputError(
                f"The argument {name!r} of the server is not right ({first['msg']}): correct it."
                f"{near if first['type'] == 'unexpected_keyword_argument' else ''}"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
