# A Ray node that hosts DeepSpeed ranks. Same stack, same Python, same Ray as the rollout image: Ray
# accepts no mixture, and learner and engines must agree on torch to share weights.
#   docker build -f docker/learner.Dockerfile -t trialrun-learner:0.1.0 .
ARG ROLLOUT_IMAGE=trialrun-rollout:0.1.0
FROM ${ROLLOUT_IMAGE}

# g++: DeepSpeed compiles its host-side operators on first use where a configuration asks for them.
USER root
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
USER trialrun

ENV DS_ACCELERATOR=cuda
