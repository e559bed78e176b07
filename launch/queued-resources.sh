#!/usr/bin/env bash
# {{name}} on a Cloud TPU slice of its own. Runs on your machine: asks for the slice, and asks again when a spot slice is
# taken away, until the run is complete. Safe to stop and to start again. Project and zone are those of `gcloud config`.
set -euo pipefail

name={{name}}
# What the slice says about the end of the run: beside the run directory, not in it.
status_file={{run}}.status
startup_script="$(dirname "$0")/startup.sh"

slice() { gcloud compute tpus queued-resources "$@"; }

while true; do
    if ! slice describe "$name" >/dev/null 2>&1; then
        gcloud storage rm "$status_file" 2>/dev/null || true
        slice create "$name" --node-id="$name" --accelerator-type={{accelerator_type}} \
            --runtime-version={{runtime_version}} --scopes=cloud-platform \
            {{spot_flag}}
            --metadata-from-file=startup-script="$startup_script"
    fi
    state=
    while [ "$state" != SUSPENDED ]; do
        sleep 60
        if status=$(gcloud storage cat "$status_file" 2>/dev/null); then
            slice delete "$name" --force --quiet
            echo "$name: the run ended with status $status"
            exit "$status"
        fi
        # A network that is away for a while says nothing about the slice; an empty answer does.
        state=$(slice list --filter="name~/$name\$" --format='value(state.state)') || state=unknown
        echo "$name: ${state:-stopped}"
        [ -n "$state" ] || exit 1
        if [ "$state" = FAILED ]; then # it was never made: no quota, no such slice in this zone
            slice describe "$name" --format='yaml(state)' >&2
            echo "$name: mend what it says, then: icl-jax launch stop $name --on queued-resources, and start again" >&2
            exit 1
        fi
    done
    # A preempted slice stays as a dead entry. The next one resumes from the run directory.
    slice delete "$name" --force --quiet
done
