# What ./demo, ./test and .ci/run need before cargo can do the rest. To be sourced.

# Ends here, with what to do.
give_up() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# Goes on as root: network namespaces, taps and the installation of packages need it.
need_root() {
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null ||
        give_up 'needs root (network namespaces, taps, packages) and there is no sudo: run it as root'
    echo 'Network namespaces, taps and packages need root: going on with sudo.'
    exec sudo env "PATH=$PATH" "CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}" "RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}" \
        "$0" "$@"
}

need_rust() {
    command -v cargo >/dev/null ||
        give_up 'needs a Rust toolchain (1.95 or newer) and finds no cargo: install one from rustup.rs'
}

# need_compiler PROGRAM PACKAGE…: installs the packages where the program is missing.
need_compiler() {
    local program=$1
    shift
    command -v "$program" >/dev/null && return
    command -v apt-get >/dev/null || give_up "needs $program: install it by your distribution's means"
    echo "Installing packages: $*"
    apt-get -q update >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get -q install --no-install-recommends -y "$@" >/dev/null
}
