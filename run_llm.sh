#!/usr/bin/env bash
# Sets Aprendiz up, where that is still to do, and serves app.main:app. See --help.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=scripts/env.sh
. scripts/env.sh

usage() {
    cat <<'TEXT'
Usage: ./run_llm.sh [--host ADDRESS] [--port PORT] [--train | --no-train] [--setup-only] [options of "aprendiz serve"]

Serves Aprendiz (app.main:app) on http://127.0.0.1:8000. The first start makes .venv, installs the locked packages and
fetches the bundled model; later starts find all that in place and need no network. What training needs (PyTorch above all)
follows in the background while the service serves already; its log is .cache/train-setup.log.

  --host ADDRESS   address to listen on (setting server.host)
  --port PORT      port to listen on (setting server.port)
  --train          install what training needs first, then serve
  --no-train       serve only; training runs are refused
  --setup-only     do everything but serve
  --help           this text; ".venv/bin/aprendiz serve --help" lists the other options

Settings: config.yaml, .env and the environment, see .env.example and doc/configuration.md.
TEXT
}

setup_only=false train=background
arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        --setup-only) setup_only=true ;;
        --train) train=first ;;
        --no-train) train=never ;;
        *) arguments+=("$argument") ;;
    esac
done

lock_setup
install base requirements/memory.lock
if [ $train = first ] || { $setup_only && [ $train = background ]; }; then install_train; fi
unlock_setup

if [ $train = background ] && ! $setup_only && ! train_is_installed; then
    say "fetching what training needs in the background (log: .cache/train-setup.log; --no-train goes without)"
    mkdir -p .cache
    # Niced: whoever asks the model now comes first. In a session of its own, where there is such a thing: Ctrl-C ends the
    # service, not a half-done installation. In a subshell: it is nobody's child that the service would have to bury.
    (
        session=$(command -v setsid || true)
        $session nice -n 19 bash -c 'set -euo pipefail; . scripts/env.sh; lock_setup; install_train' "$0" \
            >.cache/train-setup.log 2>&1 </dev/null &
    )
fi

if $setup_only; then
    exec "$VENV/bin/aprendiz" models pull --configured
fi
exec "$VENV/bin/aprendiz" serve --pull ${arguments[@]+"${arguments[@]}"}
