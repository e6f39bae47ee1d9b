# shellcheck shell=bash
# Virtual environments made from lock files. Sourced by lib.sh.

# CONDITION on `version`, the pair of numbers: prints the first Python that meets it and can make virtual environments.
# A pyenv shim may be there and refuse, hence the calls.
find_python() {
    local python
    for python in python3.11 python3 /usr/bin/python3; do
        ! "$python" -c "import ensurepip, venv, sys; version = sys.version_info[:2]; sys.exit(not ($1))" >/dev/null 2>&1 ||
            { echo "$python"; return; }
    done
    return 1
}

# SERVICE LOCK CONDITION: makes STATE/SERVICE/venv with what the lock names, unless it is there.
make_venv() {
    local venv=$STATE/$1/venv log=$STATE/$1/pip.log python
    ! cmp -s "$2" "$venv/installed" || return 0
    if ! find_python "$3" >/dev/null; then
        # Debian 12's own Python, which may lack venv. A release without a Python 3.11 says so here.
        install_packages /usr/bin/python3.11=python3.11 /usr/lib/python3.11/ensurepip/__init__.py=python3.11-venv
    fi
    python=$(find_python "$3") || die "$1: needs Python, $3, with venv and pip, as python3.11 or python3 on the PATH"
    note "$1: installing $(basename "$2") into $venv, once (up to half a minute)"
    rm -rf "$venv"
    { "$python" -m venv "$venv" && "$venv/bin/python" -m pip install --no-deps --requirement "$2"; } \
        </dev/null >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "pip failed: $log"; }
    # Last, so that an installation that was cut short is never taken for a good one.
    cp "$2" "$venv/installed"
}
