#!/usr/bin/env bash
# Trains on a TPU VM slice: the same command on every worker; jax connects them.
#
#   launch/tpu_pod.sh TPU_NAME ZONE configs/NAME.py [--field value ...]
#
# Each worker needs this repository in ~/posefix_jax with jax[tpu] installed in its .venv. The prepared data and --out must be
# on storage that all workers share, such as a mounted bucket. After a preemption, run it again: it resumes.
set -euo pipefail
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
    --command "cd ~/posefix_jax && .venv/bin/posefix train $(printf '%q ' "$@") --processes.coordinator auto"
