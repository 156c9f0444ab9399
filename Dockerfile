# A node of a Ray cluster, or a machine of its own, with safe_ray on it.
#
#   docker build -t safe_ray .
#   docker build -t safe_ray:cuda --build-arg DEVICE=cu128 .
#   docker run --rm --shm-size=4g -v "$PWD/results:/home/ray/results" safe_ray \
#       python -m safe_ray.tune
#
# DEVICE is the end of the official image's tag: cpu, or one of its CUDA variants. All nodes of a
# cluster need the same version of Ray and Python, so both are pinned here as in constraints.txt.
ARG RAY_VERSION=2.60.0
ARG PYTHON=py311
ARG DEVICE=cpu
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}-${DEVICE}

# The image's own user; its Python environment lies in its home folder.
USER ray
WORKDIR /home/ray/safe_ray

# What seldom changes comes first, so that a change of the code installs nothing but the code.
COPY --chown=ray:users constraints.txt pyproject.toml README.md LICENSE ./
RUN python -c 'import tomllib; \
        project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        print(*project["dependencies"], sep="\n")' > requirements.txt && \
    python -m pip install --no-cache-dir -c constraints.txt -r requirements.txt && \
    rm requirements.txt

COPY --chown=ray:users conf conf
COPY --chown=ray:users safe_ray safe_ray
# The package takes its copy of conf/ along; the one in this folder is there to be read.
RUN python -m pip install --no-cache-dir --no-deps -c constraints.txt . && \
    rm -r safe_ray && \
    mkdir /home/ray/results

ENV SAFE_RAY_STORAGE=/home/ray/results \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_TRAIN_V2_ENABLED=1
WORKDIR /home/ray/results
CMD ["python", "-m", "safe_ray.tune", "--help"]
