# A Ray node for DeepSpeed ranks, and the head. It has the same stack, Python and Ray as the rollout
# image: Ray requires equal versions, and learner and engines need the same torch to share weights.
#   docker build -f docker/learner.Dockerfile -t trialrun-learner:0.1.0 .
ARG ROLLOUT_IMAGE=trialrun-rollout:0.1.0
FROM ${ROLLOUT_IMAGE}

# g++: DeepSpeed compiles its host-side operators on first use if a configuration enables them.
USER 0
# hadolint ignore=DL3008 # Debian's mirrors keep only the newest version of a package
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
USER 10001

# `cuda` or `cpu`: what DeepSpeed would otherwise find out by itself, which takes seconds.
ARG ACCELERATOR=cuda
ENV DS_ACCELERATOR=${ACCELERATOR}
