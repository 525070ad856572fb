# docker build -t unlearn-release . && docker run --rm -v unlearn-runs:/app/runs unlearn-release
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home app \
    && install --directory --owner app /app /app/runs

USER app
WORKDIR /app

# The dependencies first: a change of the code does not install them again.
COPY --chown=app Makefile pyproject.toml constraints.txt README.md LICENSE ./
RUN make setup

COPY --chown=app . .
CMD ["make", "release"]
