# The reaper's image: docs/deploying.md. Any architecture for which Python and psutil have builds; nothing is compiled.
# The base is an argument so that a release can pin it by digest (python:...@sha256:...).
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
WORKDIR /src
COPY requirements.txt requirements-build.txt ./
# No pip in /opt/reaper: the one of the build's own environment installs into it from outside.
RUN python3 -m venv /build \
 && /build/bin/python -m pip install --no-cache-dir --require-hashes -r requirements-build.txt \
 && python3 -m venv --without-pip /opt/reaper \
 && /build/bin/python -m pip --python /opt/reaper/bin/python install --no-cache-dir --no-compile \
    --only-binary :all: --require-hashes -r requirements.txt
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY reaper reaper
COPY deploy/terminal deploy/terminal
# The project's address on the web, for the links in the metadata; a release sets it.
ARG PROJECT_URL=
# Bytecode is made here, by content and not by time: a read-only root could not keep any, and two builds are alike.
RUN /build/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation -w dist . \
 && /build/bin/python -m pip --python /opt/reaper/bin/python install --no-cache-dir --no-compile --no-deps dist/*.whl \
 && /opt/reaper/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/reaper/lib

FROM ${BASE}
ARG VERSION=unreleased
ARG REVISION=unknown
ARG PROJECT_URL=
LABEL org.opencontainers.image.title="openclaw-lock-reaper" \
      org.opencontainers.image.description="Finds stuck session locks of an OpenClaw gateway and removes those that are safe to remove" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${PROJECT_URL}" \
      org.opencontainers.image.url="${PROJECT_URL}" \
      org.opencontainers.image.documentation="${PROJECT_URL:+${PROJECT_URL}/blob/${VERSION}/docs/README.md}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/reaper /opt/reaper
# A new volume mounted here gets this owner, no matter which container mounts it first.
RUN install -d -o 1000 -g 1000 /state
# In a container, loopback is the container's own: Prometheus asks from outside.
ENV PATH="/opt/reaper/bin:${PATH}" \
    PYTHONDONTWRITEBYTECODE=1 \
    REAPER_STATE_DIR="openclaw=/state" \
    REAPER_LISTEN=":9789" \
    REAPER_REVISION="${REVISION}"
# The gateway's image runs as node, uid 1000. Another user could not check whether its lock files are open.
USER 1000:1000
EXPOSE 9789
# Costs 35 ms of CPU each time: docs/performance.md.
HEALTHCHECK --interval=30s --timeout=6s --start-period=10s --retries=3 CMD ["reaper", "probe"]
ENTRYPOINT ["reaper"]
CMD ["watch"]
