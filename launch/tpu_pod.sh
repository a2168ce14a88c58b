#!/usr/bin/env bash
# Trains on a TPU VM slice: the same command on every worker, which jax joins by itself.
#
#   launch/tpu_pod.sh TPU_NAME ZONE configs/NAME.py [--field value ...]
#
# On each worker: this repository in ~/posefix_jax with jax[tpu] installed in its .venv, and the prepared data and
# --out on storage that all of them see (a mounted bucket, say). Run it again after a preemption; it goes on.
set -euo pipefail
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
    --command "cd ~/posefix_jax && .venv/bin/posefix train $(printf '%q ' "$@") --processes.coordinator auto"
