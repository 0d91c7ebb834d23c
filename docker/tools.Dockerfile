# The tool server alone: the standard library, `envs/` and its dependencies. No torch, no Ray.
#   docker build -f docker/tools.Dockerfile -t trialrun-tools:0.1.0 .
FROM python:3.11-slim-bookworm

# The lock file only pins versions here; the rest of the stack is not installed.
COPY requirements/cpu.lock /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt \
        anyio fastapi httpx httpx2 mcp msgpack prometheus_client pydantic pyyaml uvicorn websockets \
    && rm /tmp/constraints.txt

# Not root: the server needs no privileges, and the sandbox would drop root's anyway.
RUN useradd --create-home --uid 10001 trialrun
WORKDIR /srv/trialrun
COPY envs/ envs/
USER trialrun

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8300
# On other addresses than loopback the server refuses to start without a token, and
# TRIALRUN_TOOLS_TOKEN has no default.
CMD ["sh", "-c", "exec python -m envs.server.main --host 0.0.0.0 --port 8300 --token \"$TRIALRUN_TOOLS_TOKEN\""]
