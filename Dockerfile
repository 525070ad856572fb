# make image, or: docker build --tag unlearn-release .
# docker run --rm --volume unlearn-runs:/app/runs unlearn-release                     the demo, end to end
# docker run --rm --volume unlearn-runs:/app/runs unlearn-release release RECIPE …    any other command
#
# The base is debian:bookworm-slim as of 2026-10-05, by the digest of its index of architectures. Another Debian, or its
# Python (3.11 or newer), is a matter of this argument.
ARG BASE=docker.io/library/debian:bookworm-slim@sha256:7c7b2c966bc9ee8cedfeef67e0e279108992c77681fa595db4a9d65c06ccc587

# What both stages need. Versions are those of the base's release.
FROM ${BASE} AS python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app

FROM python AS build
# Which build of torch: this index has those for a CPU. For a GPU: --build-arg TORCH_INDEX=https://pypi.org/simple, whose
# Linux builds bring CUDA along (about 5 GB).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The dependencies first: a change of the code does not install them again. What torch needs comes with the second step.
COPY pyproject.toml constraints.txt README.md LICENSE ./
# hadolint ignore=DL3013
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-deps --index-url "${TORCH_INDEX}" torch
RUN .venv/bin/pip install --constraint constraints.txt --editable '.[s3]'

FROM python
ARG VERSION=unknown
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="unlearn-release" \
    org.opencontainers.image.description="Unlearn a language model, prove what it forgot, and publish it." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${COMMIT}"
# By number, so that Kubernetes can see that it is not root. Only its home and the store can be written.
RUN useradd --create-home --uid 10001 app \
    && install --directory --owner app runs
COPY --from=build /app/.venv .venv
# The project's own files: .dockerignore lists them.
COPY . .
USER 10001
# Manifests name the commit; an image has no .git.
ENV PATH="/app/.venv/bin:${PATH}" UNLEARN_RELEASE_COMMIT="${COMMIT}"
# As Ctrl-C does it: the stage ends, and the next run goes on from there.
STOPSIGNAL SIGINT
# Plans the demo: packages, device, memory, and the store.
HEALTHCHECK --interval=10m --timeout=2m --start-period=2m CMD ["unlearn-release", "release", "demo", "--dry-run"]
ENTRYPOINT ["unlearn-release"]
CMD ["release", "demo"]
