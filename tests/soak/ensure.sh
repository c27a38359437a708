#!/usr/bin/env bash
# Installs what a soak needs beside the servers, where we are root and there is apt; the soak says what is missing.
set -uo pipefail
missing=()
[ -e "/usr/lib/$(uname -m)-linux-gnu/faketime/libfaketime.so.1" ] || missing+=(libfaketime)
command -v ip >/dev/null || missing+=(iproute2)
PATH="$PATH:/usr/sbin" command -v nft >/dev/null || missing+=(nftables)
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q </dev/null >/dev/null
    apt-get install -qy --no-install-recommends "${missing[@]}" </dev/null >/dev/null
fi
exit 0
