# See docs/deploying.md. Works for each architecture that has builds of Python and psutil, because nothing is compiled.
# A release pins the base by digest (python:...@sha256:...).
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
WORKDIR /src
COPY requirements.txt requirements-build.txt ./
# /opt/reaper has no pip: the pip of /build installs into it.
RUN python3 -m venv /build \
 && /build/bin/python -m pip install --no-cache-dir --require-hashes -r requirements-build.txt \
 && python3 -m venv --without-pip /opt/reaper \
 && /build/bin/python -m pip --python /opt/reaper/bin/python install --no-cache-dir --no-compile \
    --only-binary :all: --require-hashes -r requirements.txt
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY reaper reaper
COPY deploy/terminal deploy/terminal
# The project's web address, for the links in the metadata; a release sets it.
ARG PROJECT_URL=
# Compile here, because the container's root is read-only. Hashes instead of times make two builds equal.
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
# A new volume that is mounted here gets this owner, even if this container mounts it first.
RUN install -d -o 1000 -g 1000 /state
# Prometheus scrapes from outside, so the reaper does not listen on the container's loopback only.
ENV PATH="/opt/reaper/bin:${PATH}" \
    PYTHONDONTWRITEBYTECODE=1 \
    REAPER_STATE_DIR="openclaw=/state" \
    REAPER_LISTEN=":9789" \
    REAPER_REVISION="${REVISION}"
# The uid of the gateway's image (node). Another user cannot check whether the gateway's lock files are open.
USER 1000:1000
EXPOSE 9789
# Costs 35 ms of CPU each time: docs/performance.md.
HEALTHCHECK --interval=30s --timeout=6s --start-period=10s --retries=3 CMD ["reaper", "probe"]
ENTRYPOINT ["reaper"]
CMD ["watch"]
