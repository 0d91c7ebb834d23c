#!/bin/sh
# A base image from Debian's packages, for machines that reach no image registry.
#   sudo docker/base_image.sh trialrun-base:bookworm
#   docker build --build-arg BASE_IMAGE=trialrun-base:bookworm -f docker/tools.Dockerfile ...
# Needs root, debootstrap and a container engine. DEBIAN_MIRROR names another mirror. The certificates
# that this machine trusts are put into the image, so that a company's proxy is trusted there, too.
set -eu
name=${1:?usage: docker/base_image.sh NAME:TAG}
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-dev \
    bookworm "$folder" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
cp -L "$certificates" "$folder/etc/ssl/host-certificates.crt"
tar -C "$folder" -c . | docker import \
    --change 'ENV SSL_CERT_FILE=/etc/ssl/host-certificates.crt' \
    --change 'ENV PIP_CERT=/etc/ssl/host-certificates.crt' \
    --change 'CMD ["bash"]' - "$name"
