# A Ray node with vLLM and DeepSpeed.
#   docker build -f docker/rollout.Dockerfile -t trialrun-rollout:0.1.0 .
# STACK=gpu (default): requirements/gpu.lock. The CUDA libraries come with torch's own packages; the
# host brings the driver (580 or newer for CUDA 13) and the NVIDIA container toolkit.
# STACK=cpu: requirements/cpu.lock, for machines without a GPU.
# BASE_IMAGE: Debian 12 or later with Python 3.11 or 3.12, its module venv and its C headers.
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
FROM ${BASE_IMAGE}

# gcc: Triton and vLLM compile small pieces when they run. libnuma1: vLLM on the CPU does not start
# without it. wget: KubeRay's health probes call it.
# hadolint ignore=DL3008 # Debian's mirrors keep only the newest version of a package
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libnuma1 wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 trialrun \
    && mkdir -p /srv/trialrun /srv/runs \
    && chown 10001:10001 /srv/trialrun /srv/runs
# A number: Kubernetes cannot tell from a name whether it is root.
USER 10001
WORKDIR /srv/trialrun

# The stack first: it changes less often than the code, and it is 10 GB. Bytecode is compiled here;
# otherwise every new pod would compile it again.
ARG STACK=gpu
# Where the CPU build of torch is; read for STACK=cpu only.
ARG CPU_TORCH=https://download.pytorch.org/whl/cpu/torch/
COPY --chown=10001 requirements/ requirements/
RUN case "${STACK}" in \
      gpu) set -- --constraints requirements/gpu.constraints ;; \
      cpu) set -- --find-links "${CPU_TORCH}" --index-strategy unsafe-best-match ;; \
      *) echo "expected STACK=gpu or STACK=cpu, found STACK=${STACK}" >&2; exit 2 ;; \
    esac \
    && python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir "$(grep '^uv==' "requirements/${STACK}.lock")" \
    && .venv/bin/uv pip sync --no-cache --compile-bytecode --python .venv/bin/python "$@" \
        "requirements/${STACK}.lock"

COPY --chown=10001 pyproject.toml README.md LICENSE ./
COPY --chown=10001 envs/ envs/
COPY --chown=10001 rollout/ rollout/
COPY --chown=10001 learner/ learner/
COPY --chown=10001 cluster/ cluster/
RUN .venv/bin/uv pip install --no-cache --python .venv/bin/python \
        --no-deps --no-build-isolation --editable .

# KubeRay starts Ray from a login shell, which resets PATH: the commands must be where it looks.
USER 0
RUN ln -s /srv/trialrun/.venv/bin/ray /srv/trialrun/.venv/bin/trialrun /usr/local/bin/
USER 10001

ENV PATH=/srv/trialrun/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VLLM_NO_USAGE_STATS=1 \
    RAY_USAGE_STATS_ENABLED=0
EXPOSE 6379 8265
CMD ["trialrun", "doctor"]
