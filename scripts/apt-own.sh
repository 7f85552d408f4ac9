# shellcheck shell=sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# apt with package lists of our own, below build/apt: read Debian suites
# that the machine is not configured for, from the mirror that it is
# configured for, without touching the system's apt configuration.
# Sourced by scripts/setup-host and scripts/fetch-qemu.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# again COMMAND...: a mirror that is being updated, a lock that another apt
# holds (apt waits for dpkg's, not for that of the lists): try once more.
again() {
    for pause in 10 30 60; do
        "$@" && return
        say "that failed, once more in $pause s"
        sleep "$pause"
    done
    "$@"
}

# apt_failed MESSAGE: dies with MESSAGE and what apt said, if it said it.
apt_failed() {
    die "$1
  Is there a network, and does the mirror offer it? apt said:
$(grep -E '^(E|W|Err)' "$apt_dir/log" | head -n 5 | sed 's/^/    /')"
}

# debian_mirror: prints the address of the mirror that apt takes Debian from.
debian_mirror() {
    # Third parties use Debian's suite names too: ORIGIN tells them apart,
    # but is known only after an "apt-get update".
    # shellcheck disable=SC2016 # apt expands these
    apt-get indextargets 'ShortDesc: Packages' \
            --format '$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)' |
        awk -F'|' '$1 == "Debian" && $2 !~ /-/ && $3 == "main" {
                       print $4; exit }'
}

# apt_own_init DIR: where lists, cache and sources live.
apt_own_init() {
    apt_dir=$1
    mkdir -p "$apt_dir/lists/partial" "$apt_dir/cache/archives/partial" ||
        die "cannot write to $apt_dir"
    : >"$apt_dir/own.sources"
}

# apt_own_source TYPE MIRROR SUITE: adds a source; signatures are checked.
apt_own_source() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e "$keyring" ] || keyring=${keyring%.gpg}.pgp
    [ -e "$keyring" ] ||
        die "package debian-archive-keyring is missing: run scripts/setup-host"
    printf 'Types: %s\nURIs: %s\nSuites: %s\nComponents: main\n' \
        "$1" "$2" "$3" >>"$apt_dir/own.sources"
    printf 'Signed-By: %s\n\n' "$keyring" >>"$apt_dir/own.sources"
}

# apt_own COMMAND ARGS...: apt-get or apt-cache on those sources alone.
apt_own() {
    tool=$1
    shift
    "$tool" -o Dir::Etc::sourcelist="$apt_dir/own.sources" \
            -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::State::lists="$apt_dir/lists" \
            -o Dir::Cache="$apt_dir/cache" \
            -o APT::Sandbox::User="$(id -un)" \
            -o Acquire::Retries=3 \
            "$@"
}

# apt_own_log COMMAND ARGS...: the same; what it says goes to the log.
apt_own_log() {
    apt_own "$@" >"$apt_dir/log" 2>&1
}

# apt_own_update WHAT: fetches the lists, or dies saying that WHAT is not
# to be had.
apt_own_update() {
    if ! again apt_own_log apt-get update -o APT::Update::Error-Mode=any; then
        apt_failed "the Debian mirror did not give the package list of $1."
    fi
}
