# A node of a Ray cluster, or a machine of its own, with safe_ray on it.
#
#   docker build -t safe-ray:0.1.0 .
#   docker build -t safe-ray:0.1.0-cu130 --build-arg DEVICE=cu130 .
#   docker run --rm --shm-size=4g -v "$PWD/results:/home/ray/results" safe-ray:0.1.0 \
#       python -m safe_ray.tune
#
# All nodes of a cluster need the same version of Ray and Python, so both are pinned here as in
# constraints.txt. The base is Ray's image without CUDA in either case: torch brings the CUDA that it
# was built with, and a second one would be 5 GB that nothing uses. The driver is the machine's.
ARG RAY_VERSION=2.60.0
ARG PYTHON=py311
# sha256:..., as `docker buildx imagetools inspect rayproject/ray:2.60.0-py311-cpu` prints it: a tag
# may come to mean another image, a digest does not.
ARG BASE_DIGEST=
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}-cpu${BASE_DIGEST:+@}${BASE_DIGEST} AS base
# By number, so that Kubernetes can tell that it is not root. In Ray's images it is ray, of users.
USER 1000:100

# The wheel is built elsewhere than in the image, which then holds neither sources nor build tools.
FROM base AS wheel
WORKDIR /home/ray/source
COPY --chown=1000:100 constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m pip install --no-cache-dir -c constraints.txt hatchling
COPY --chown=1000:100 conf conf
COPY --chown=1000:100 safe_ray safe_ray
RUN python -m hatchling build -t wheel -d dist

FROM base
WORKDIR /home/ray/safe_ray
# cpu, or a CUDA that torch is built for; cu130 is what constraints.txt was tested with.
ARG DEVICE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl

# What seldom changes comes first, so that a change of the code installs nothing but the code.
COPY --chown=1000:100 constraints.txt pyproject.toml ./
# Without its dependencies: the index of torch has few others. A torch for CPUs wants none of CUDA's.
RUN grep -E '^(torch|torchvision)==' constraints.txt > torch.txt && \
    python -m pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}/${DEVICE}" \
        -r torch.txt
# torch itself pins the CUDA packages that it needs, which differ from one CUDA to another. Serve
# brings what serving needs.
RUN grep -vE '^(cuda|nvidia)-' constraints.txt > pins.txt && \
    python -c 'import tomllib; \
        project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        wanted = project["dependencies"] + project["optional-dependencies"]["serve"]; \
        print(*wanted, sep="\n")' > requirements.txt && \
    python -m pip install --no-cache-dir -c pins.txt -r requirements.txt && \
    rm torch.txt pins.txt requirements.txt

COPY --from=wheel --chown=1000:100 /home/ray/source/dist /home/ray/dist
RUN python -m pip install --no-cache-dir --no-deps /home/ray/dist/*.whl && \
    rm -r /home/ray/dist && \
    mkdir /home/ray/results

ENV SAFE_RAY_STORAGE=/home/ray/results \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_TRAIN_V2_ENABLED=1
WORKDIR /home/ray/results

ARG VERSION=0.1.0
ARG REVISION=
ARG RAY_VERSION
ARG PYTHON
ARG BASE_DIGEST
LABEL org.opencontainers.image.title="safe_ray" \
      org.opencontainers.image.description="Few-shot fine-tuning of CLIP on a Ray cluster" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/rayproject/ray:${RAY_VERSION}-${PYTHON}-cpu" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
CMD ["python", "-m", "safe_ray.tune", "--help"]
