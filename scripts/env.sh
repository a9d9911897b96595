# Shared by run_llm.sh and run_tests.sh (sourced by them, not run): finds Python, makes .venv, installs the locks.
# shellcheck shell=bash
#
# Downloads go through pip alone, so that your pip configuration (index, proxy, certificates) holds. Nothing is fetched when
# the stamp in .venv says that these locks, this pyproject.toml and this Python are installed already.

VENV=.venv

say() { echo "${0##*/}: $*" >&2; }
die() { say "$*"; exit 1; }

find_python() { # prints the first Python >= 3.11; PYTHON=... in the environment comes first
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed and none was found. Install it, or name it: PYTHON=/path/to/python ./${0##*/}"
}

stamp_of() { # stamp_of FILE...: one hash over the Python that made the environment, the place, and the files
    "$VENV/bin/python" -c '
import hashlib, pathlib, sys
parts = [sys.version.encode(), sys.prefix.encode(), *(pathlib.Path(name).read_bytes() for name in sys.argv[1:])]
print(hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest())' "$@"
}

make_venv() {
    if [ -e "$VENV" ] && ! "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        say "$VENV does not work any more; making it anew"
        rm -rf "$VENV"
    fi
    if [ ! -e "$VENV/bin/pip" ]; then
        local python
        python=$(find_python)
        say "making $VENV with $("$python" --version)"
        "$python" -m venv "$VENV" || die "Python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
    fi
}

pip_install() {
    "$VENV/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input "$@"
}

# install NAME LOCK...: brings the environment to the state of the locks, once; NAME names the stamp.
install() {
    local name=$1 stamp wanted
    shift
    make_venv
    stamp="$VENV/.installed-$name"
    wanted=$(stamp_of pyproject.toml requirements/bootstrap.lock "$@")
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    rm -f "$stamp"
    say "installing packages ($*); this takes a minute"
    # An extra is added to an environment that may be serving at this moment: what it runs on is not touched.
    [ "$name" = train ] || pip_install --no-deps --require-hashes -r requirements/bootstrap.lock
    local lock arguments=()
    for lock in "$@"; do arguments+=(-r "$lock"); done
    # The lock is complete: no resolver, every file checked against its hash.
    pip_install --no-deps --no-compile --require-hashes "${arguments[@]}" ||
        die "the installation failed (see above); start ${0##*/} again to go on"
    [ "$name" = train ] || pip_install --no-deps --no-build-isolation --editable .
    if [ "$name" = base ]; then
        # On all cores, where pip would take one; and here, because with PYTHONDONTWRITEBYTECODE set no import would keep it and
        # each start would take seconds longer. A package may ship a file for another Python: that is no failure.
        "$VENV/bin/python" -m compileall -q -j 0 "$VENV/lib" app >/dev/null || :
    fi
    echo "$wanted" >"$stamp"
}

# torch comes from wherever your pip configuration finds it: a folder of wheels, the CPU index of PyTorch, or PyPI (CUDA).
install_torch() {
    local stamp="$VENV/.installed-torch" wanted
    wanted=$(stamp_of requirements/torch.txt)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        say "installing torch; without a CPU wheel at hand this is a large download"
        pip_install --no-compile -r requirements/torch.txt
        echo "$wanted" >"$stamp"
    fi
}

# What training needs, torch last: the service takes a run on only once torch is there, whole.
train_is_installed() {
    [ "$(cat "$VENV/.installed-train" 2>/dev/null)" = "$(stamp_of pyproject.toml requirements/bootstrap.lock requirements/train.lock)" ] &&
        [ "$(cat "$VENV/.installed-torch" 2>/dev/null)" = "$(stamp_of requirements/torch.txt)" ]
}
install_train() {
    if train_is_installed; then return; fi
    local marker="$VENV/.installing-train"
    # shellcheck disable=SC2064  # the path as it is now
    trap "rm -f '$marker'" EXIT
    touch "$marker"
    install train requirements/train.lock
    install_torch
    # With PYTHONDONTWRITEBYTECODE set no import would keep it, and each run would start seconds later.
    "$VENV/bin/python" -m compileall -q "$VENV/lib" >/dev/null || :
    rm -f "$marker"
}

# Two starts at once would write into one environment; the second one waits. (Systems without flock go without.)
lock_setup() {
    if command -v flock >/dev/null; then
        mkdir -p .cache
        exec 9>.cache/setup.lock
        flock 9
    fi
}
unlock_setup() { exec 9>&-; }
