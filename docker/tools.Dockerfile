# The tool server alone: the standard library, `envs/` and its dependencies. No torch, no Ray.
#   docker build -f docker/tools.Dockerfile -t trialrun-tools:0.1.0 .
# BASE_IMAGE: Debian 12 or later with Python 3.11 or 3.12 and its module venv. docker/README.md says
# how to make one where no image registry can be reached.
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
FROM ${BASE_IMAGE}

# An environment of its own: Debian's Python refuses packages from elsewhere.
RUN python3 -m venv /srv/venv
ENV PATH=/srv/venv/bin:$PATH

# The lock file only pins versions here; the rest of the stack is not installed.
COPY requirements/cpu.lock /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt \
        anyio docstring_parser fastapi h11 httpx httpx2 jsonschema mcp msgpack prometheus_client pydantic \
        pyyaml referencing regex uvicorn websockets \
    && rm /tmp/constraints.txt

# Not root: the server needs no privileges, and the sandbox would drop root's anyway.
RUN useradd --create-home --uid 10001 trialrun
WORKDIR /srv/trialrun
COPY envs/ envs/
# A number: Kubernetes cannot tell from a name whether it is root.
USER 10001

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8300
# On other addresses than loopback the server refuses to start without a token, and
# TRIALRUN_TOOLS_TOKEN has no default. Clients may name the server by an address, by the container's
# host name, or as `tools`; further names are added with --allow-host.
CMD ["python", "-m", "envs.server.main", "--host", "0.0.0.0", "--port", "8300", \
     "--token-variable", "TRIALRUN_TOOLS_TOKEN", "--allow-host", "tools"]
