# kdctool for NVIDIA GPUs. Build it from the root of the checkout:
#
#     docker build -f docker/cuda.Dockerfile -t kdctool:cuda .
#     docker run --rm --gpus all --shm-size 8g -v "$PWD/shards:/workspace/shards:ro" -v "$PWD/runs:/workspace/runs" \
#         kdctool:cuda pretrain recipes/small.toml --shards shards
#
# The CUDA 13.0 libraries come with torch's wheels, so the base carries none of its own. The driver comes from the host
# (580 or newer).
FROM python:3.12-slim-bookworm

LABEL org.opencontainers.image.title="kdctool" \
      org.opencontainers.image.description="From a folder of videos to a trained, measured, exported audio-visual model" \
      org.opencontainers.image.licenses="Apache-2.0"

# gcc, g++, the C headers and Python's own stay in the image: torch.compile builds its kernels and launchers when it runs.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ffmpeg g++ libc6-dev tini \
 && rm -rf /var/lib/apt/lists/*

RUN python -m venv /opt/kdctool
ENV PATH=/opt/kdctool/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# What kdctool needs, in a layer that a change of kdctool's own code leaves as it is.
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
 && pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/requirements.txt setuptools \
 && rm /tmp/requirements.txt

COPY README.md LICENSE ./
COPY recipes recipes
COPY kdctool kdctool
RUN pip install --no-cache-dir --no-deps --no-build-isolation --constraint constraints.txt . \
 && rm -rf /src/build /src/*.egg-info

# Any user id works (docker run --user "$(id -u):$(id -g)"): what is written at run time goes to /workspace and /tmp.
RUN useradd --uid 10001 --gid 0 --home-dir /workspace --no-create-home --shell /usr/sbin/nologin kdctool \
 && mkdir -p /workspace && chown 10001:0 /workspace && chmod 1777 /workspace
ENV HOME=/workspace \
    USER=kdctool \
    XDG_CACHE_HOME=/tmp/cache \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton
WORKDIR /workspace
USER 10001:0

RUN kdctool doctor \
 && python -c "import torch; assert torch.version.cuda, torch.__version__"

HEALTHCHECK NONE
ENTRYPOINT ["tini", "--", "kdctool"]
CMD ["--help"]
