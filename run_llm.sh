#!/usr/bin/env bash
# Sets Aprendiz up, where that is still to do, and serves app.main:app. See --help.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=scripts/env.sh
. scripts/env.sh

usage() {
    cat <<'TEXT'
Usage: ./run_llm.sh [--host ADDRESS] [--port PORT] [--setup-only] [options of "aprendiz serve"]

Serves Aprendiz (app.main:app) on http://127.0.0.1:8000. The first start makes .venv, installs the locked packages and
fetches the bundled model; later starts find all that in place and need no network.

  --host ADDRESS   address to listen on (setting server.host)
  --port PORT      port to listen on (setting server.port)
  --setup-only     do everything but serve
  --help           this text; ".venv/bin/aprendiz serve --help" lists the other options

Settings: config.yaml, .env and the environment, see .env.example and doc/configuration.md.
TEXT
}

setup_only=false
arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        --setup-only) setup_only=true ;;
        *) arguments+=("$argument") ;;
    esac
done

lock_setup
install base requirements/base.lock
unlock_setup

if $setup_only; then
    exec "$VENV/bin/aprendiz" models pull --configured
fi
exec "$VENV/bin/aprendiz" serve --pull ${arguments[@]+"${arguments[@]}"}
