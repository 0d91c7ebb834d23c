# A Ray node with the GPU stack: vLLM and DeepSpeed from requirements/gpu.lock.
#   docker build -f docker/rollout.Dockerfile -t trialrun-rollout:0.1.0 .
# The CUDA libraries come with torch's own packages; the host brings the driver (580 or newer for
# CUDA 13) and the NVIDIA container toolkit.
FROM python:3.11-slim-bookworm

# gcc: Triton compiles its launchers when it runs. wget: KubeRay's health probes call it.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 trialrun \
    && mkdir -p /srv/trialrun /srv/runs \
    && chown trialrun:trialrun /srv/trialrun /srv/runs
USER trialrun
WORKDIR /srv/trialrun

# The stack first: it changes less often than the code, and it is 10 GB. Bytecode is compiled here;
# otherwise every new pod would compile it again.
COPY --chown=trialrun requirements/gpu.lock requirements/gpu.lock
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir "$(grep '^uv==' requirements/gpu.lock)" \
    && .venv/bin/uv pip sync --no-cache --compile-bytecode --python .venv/bin/python \
        requirements/gpu.lock

COPY --chown=trialrun pyproject.toml README.md LICENSE ./
COPY --chown=trialrun envs/ envs/
COPY --chown=trialrun rollout/ rollout/
COPY --chown=trialrun learner/ learner/
COPY --chown=trialrun cluster/ cluster/
RUN .venv/bin/uv pip install --no-cache --python .venv/bin/python \
        --no-deps --no-build-isolation --editable .

# KubeRay starts Ray from a login shell, which resets PATH: the commands must be where it looks.
USER root
RUN ln -s /srv/trialrun/.venv/bin/ray /srv/trialrun/.venv/bin/trialrun /usr/local/bin/
USER trialrun

ENV PATH=/srv/trialrun/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VLLM_NO_USAGE_STATS=1 \
    RAY_USAGE_STATS_ENABLED=0
EXPOSE 6379 8265
CMD ["trialrun", "doctor"]
