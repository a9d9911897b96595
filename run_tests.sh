#!/usr/bin/env bash
# Sets up everything the tests need and runs all checks. See --help.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=scripts/env.sh
. scripts/env.sh

usage() {
    cat <<'TEXT'
Usage: ./run_tests.sh [--fast] [--slow] [--no-torch] [arguments of pytest]

Brings .venv to the locked state of development, fetches the bundled model for the tests, then runs ruff, lint-imports,
and pytest beside mypy. The last line is pytest's own summary; the exit code is 0 only if everything passed.

  --fast      no set-up: what .venv holds is taken as it is
  --slow      the long suites (pytest marker "slow") instead of the default ones
  --no-torch  do not install torch and transformers; tests that need them are skipped
  --help      this text

Examples: ./run_tests.sh --fast tests/api -k feedback      ./run_tests.sh --slow tests/acceptance
TEXT
}

setup=true torch=true marker="not slow"
arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        --fast) setup=false ;;
        --slow) marker="slow" ;;
        --no-torch) torch=false ;;
        *) arguments+=("$argument") ;;
    esac
done

CACHE="$PWD/.cache"
MODEL=smollm2-135m-instruct
EMBEDDER=multilingual-e5-small

install_browser() {
    if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then
        return
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing chromium for the browser tests"
        if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } >"$CACHE/apt.log" 2>&1; then
            return
        fi
    fi
    say "**** NO CHROMIUM: the browser tests are SKIPPED. Install chromium to run them. ****"
}

# The vendors' npm packages, for tests/sdk. The folder gets its name once it is whole: the tests go by the lock in it.
install_npm_packages() {
    local lock=tests/sdk/node/package-lock.json made="$CACHE/sdk-node"
    if cmp -s "$lock" "$made/package-lock.json"; then return; fi
    if command -v npm >/dev/null; then
        rm -rf "$made" "$made.new"
        mkdir -p "$made.new"
        cp tests/sdk/node/package.json "$lock" "$made.new"
        if (cd "$made.new" && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier) >"$CACHE/npm.log" 2>&1; then
            mv "$made.new" "$made"
            return
        fi
    fi
    say "**** NO NPM PACKAGES: tests of the vendors' npm packages are SKIPPED. Install Node.js with npm to run them. ****"
}

if $setup; then
    mkdir -p "$CACHE"
    lock_setup
    install dev requirements/dev.lock
    if $torch; then install_torch; fi
    unlock_setup
    install_browser
    install_npm_packages
    APRENDIZ_DATA_DIR="$CACHE" "$VENV/bin/aprendiz" models pull "$MODEL" >/dev/null ||
        say "**** NO MODEL: tests with the real model are SKIPPED. ****"
    APRENDIZ_DATA_DIR="$CACHE" "$VENV/bin/aprendiz" models pull "$EMBEDDER" >/dev/null ||
        say "**** NO EMBEDDER: tests with real vectors of text are SKIPPED. ****"
fi
[ -x "$VENV/bin/pytest" ] || die "$VENV holds no pytest; run ./run_tests.sh once without --fast"

if [ -z "${APRENDIZ_TEST_MODEL:-}" ]; then
    APRENDIZ_TEST_MODEL=$(find "$CACHE/models" -name '*.gguf' -type f 2>/dev/null | head -n 1 || true)
fi
if [ -n "$APRENDIZ_TEST_MODEL" ]; then export APRENDIZ_TEST_MODEL; else unset APRENDIZ_TEST_MODEL; fi

if [ -z "${APRENDIZ_TEST_EMBEDDER:-}" ] && [ -f "$CACHE/models/$EMBEDDER/model.onnx" ]; then
    export APRENDIZ_TEST_EMBEDDER="$CACHE/models/$EMBEDDER"
fi

failed=()
check() { # check NAME COMMAND...: goes on after a failure, so that one run shows everything
    local name=$1
    shift
    say "$name"
    "$@" || failed+=("$name")
}
check "ruff (lint)" "$VENV/bin/ruff" check --quiet .
check "ruff (format)" "$VENV/bin/ruff" format --check --quiet .
check "import contracts" "$VENV/bin/lint-imports" --no-logo 1>&2
mkdir -p "$CACHE"
# Types are checked on the other core while the tests run; what mypy says comes after them.
"$VENV/bin/mypy" --no-error-summary >"$CACHE/mypy.log" 2>&1 &
mypy=$!
say "pytest -m '$marker'"
# Two files at a time, for most tests wait more than they compute. Long suites measure and kill: one at a time.
workers=(--numprocesses 2 --dist loadfile)
case " $marker ${arguments[*]-} " in " slow "* | *" --pdb "* | *" -s "* | *" -n "*) workers=() ;; esac
run_pytest() {
    rm -f "$CACHE/began"
    PYTEST_BEGAN="$CACHE/began" "$VENV/bin/pytest" -m "$marker" ${workers[@]+"${workers[@]}"} ${arguments[@]+"${arguments[@]}"}
}
tested=0
run_pytest || tested=$?
# CPython 3.11 fails now and then while pytest loads its plug-ins ("AST constructor recursion depth mismatch", CPython issue
# 106905). A session that never began has tested nothing, so it is begun once more; a failed test is never run again.
if [ "$tested" -ne 0 ] && [ ! -e "$CACHE/began" ]; then
    say "pytest ended before its session began (see above); once more"
    tested=0
    run_pytest || tested=$?
fi
if ! wait "$mypy"; then
    say "mypy"
    cat "$CACHE/mypy.log" >&2
    failed+=("mypy")
fi
status=0
if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED: $(IFS=,; echo "${failed[*]}")"
    status=1
fi
[ "$tested" -eq 0 ] || status=$tested
exit "$status"
