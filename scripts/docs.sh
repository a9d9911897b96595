#!/usr/bin/env bash
# Rewrites what is generated: doc/cli.md, doc/configuration.md, .env.example, config.example.yaml. --check only compares.
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python scripts/docs.py "$@"
