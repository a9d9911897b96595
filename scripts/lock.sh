#!/usr/bin/env bash
# Rewrites requirements/*.lock from pyproject.toml. See requirements/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
Usage: scripts/lock.sh [--upgrade]

Rewrites requirements/*.lock from pyproject.toml: exact versions with hashes, for Python 3.11 and later on every platform.
Versions that already stand in a lock stay unless pyproject.toml forbids them; --upgrade takes the newest ones.
Needs uv (https://docs.astral.sh/uv/); set UV=/path/to/uv where it is not on PATH.
TEXT
}

upgrade=()
case "${1:-}" in
    "") ;;
    --upgrade) upgrade=(--upgrade) ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

uv="${UV:-uv}"
command -v "$uv" >/dev/null || { echo "lock.sh: uv is missing; install it with 'pip install uv' or set UV." >&2; exit 1; }

# torch is left to requirements/torch.txt: with hashes pip takes the CUDA build everywhere (requirements/README.md).
without_torch=(--no-emit-package torch --no-emit-package triton --no-emit-package aprendiz)
for part in cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 \
    nvjitlink nvshmem-cu13 nvtx; do
    without_torch+=(--no-emit-package "nvidia-$part")
done
without_torch+=(--no-emit-package cuda-bindings --no-emit-package cuda-pathfinder --no-emit-package cuda-toolkit)

options=(--quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links)

compile() { # compile NAME ARGS...: writes requirements/NAME.lock
    local name=$1
    shift
    echo "lock: requirements/$name.lock"
    "$uv" pip compile pyproject.toml "${options[@]}" --generate-hashes "${without_torch[@]}" "${upgrade[@]}" "$@" --output-file "requirements/$name.lock"
}

extras=(hf train memory chroma postgres redis ray dev)

# One resolution over everything comes first, and every lock is held to it: then any two locks can be installed together.
all=$(mktemp)
trap 'rm -f "$all"' EXIT
if [ ${#upgrade[@]} -eq 0 ]; then
    # uv keeps the versions that the output file already holds.
    cat requirements/*.lock 2>/dev/null | grep -E '^[a-z0-9].*==' | sed 's/ *\\$//' | sort -u >"$all" || true
fi
"$uv" pip compile pyproject.toml "${options[@]}" --all-extras "${upgrade[@]}" --output-file "$all"

compile base --constraint "$all"
for extra in "${extras[@]}"; do
    compile "$extra" --extra "$extra" --constraint "$all"
done

# What installs the rest: a pip that is fast with hashes, and the build backend of pyproject.toml.
echo "lock: requirements/bootstrap.lock"
printf 'pip\nsetuptools>=77\n' | "$uv" pip compile - "${options[@]}" --generate-hashes "${upgrade[@]}" \
    --output-file requirements/bootstrap.lock
