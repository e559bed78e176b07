#!/usr/bin/env bash
# Runs on each host of a TPU slice when it boots; `journalctl -u google-startup-scripts` shows its output.
set -euo pipefail
export HOME=/var/lib/icl-jax # systemd sets none
mkdir -p "$HOME"

cat > "$HOME/{{name}}.toml" <<'CONFIG'
{{config}}
CONFIG

python3 -m pip install --quiet uv
python3 -m uv venv --quiet --clear --python 3.12 /opt/icl-jax
python3 -m uv pip install --quiet --python /opt/icl-jax/bin/python {{package}}

# The key stays in Secret Manager; without one W&B is off.
WANDB_API_KEY=$(gcloud secrets versions access latest --secret=wandb-api-key 2>/dev/null || true)
[ -z "$WANDB_API_KEY" ] || export WANDB_API_KEY

# A host that fails takes the others down; all of them start again from the last saved state.
for _ in {1..10}; do
    status=0
    /opt/icl-jax/bin/icl-jax train "$HOME/{{name}}.toml" --run {{run}} --coordinator auto \
        --sigterm-status 143 || status=$?
    case $status in
        0 | 3) break ;; # complete; a loss that is not finite, which comes again
        143) exit ;;    # preempted: the slice is going away, the next one resumes
    esac
    sleep 30
done

worker=$(curl -s -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
[ "$worker" != 0 ] || echo "$status" | gcloud storage cp - {{run}}.status
