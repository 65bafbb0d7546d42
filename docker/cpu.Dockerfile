# kdctool without a GPU: extract, shard, small trainings, evaluation, export. Build it from the root of the checkout:
#
#     docker build -f docker/cpu.Dockerfile -t kdctool:cpu .
#     docker run --rm -v "$PWD/videos:/workspace/videos:ro" -v "$PWD/out:/workspace/out" kdctool:cpu extract videos out
#
# --build-arg DEMO=1 runs the whole demo (clips, training, evaluation, export) while building: a few minutes.
# pip's default index has torch with CUDA for x86_64, 3 GB more than needed here. Where an index with CPU wheels of the
# same version is at hand, --build-arg PIP_INDEX_URL=... takes it from there.
FROM python:3.12-slim-bookworm

LABEL org.opencontainers.image.title="kdctool" \
      org.opencontainers.image.description="From a folder of videos to a trained, measured, exported audio-visual model" \
      org.opencontainers.image.licenses="Apache-2.0"

# gcc, the C headers and Python's own stay in the image: torch.compile needs a compiler on a CPU, too.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ffmpeg g++ libc6-dev tini \
 && rm -rf /var/lib/apt/lists/*

RUN python -m venv /opt/kdctool
ENV PATH=/opt/kdctool/bin:$PATH \
    PYTHONUNBUFFERED=1

# What kdctool needs, in a layer that a change of kdctool's own code leaves as it is.
ARG PIP_INDEX_URL
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
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor
WORKDIR /workspace
USER 10001:0

RUN kdctool doctor
ARG DEMO=0
RUN if [ "$DEMO" = 1 ]; then kdctool demo --out /tmp/demo && rm -rf /tmp/*; fi

HEALTHCHECK NONE
ENTRYPOINT ["tini", "--", "kdctool"]
CMD ["--help"]
