# shellcheck shell=bash
# What every script here needs: messages, failures, paths. Sourced, never run.
#
# The console of the booted kernel goes to standard output; everything a script itself says goes to
# standard error, so that `scripts/run > log` keeps exactly what the kernel printed.

# Exit statuses beside 0. A verdict against the kernel is 1.
readonly EXIT_USAGE=2 # a bad option
readonly EXIT_SETUP=3 # a tool is missing and could not be installed, or the build failed

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$ROOT/target}")
readonly ROOT TARGET_DIR
export CARGO_TARGET_DIR=$TARGET_DIR
# shellcheck disable=SC2034 # used by the files that source this one
readonly OUT_DIR=$TARGET_DIR/pleat KERNEL_TARGET=aarch64-unknown-none-softfloat

SCRIPT_NAME=${0##*/}

# say TEXT...: one line of progress.
say() { printf '%s: %s\n' "$SCRIPT_NAME" "$*" >&2; }

# usage_error TEXT...: says what is wrong with the command line and ends the script.
usage_error() {
    say "$* (--help shows the options)"
    exit "$EXIT_USAGE"
}

# setup_error TEXT...: says what is missing and ends the script.
setup_error() {
    say "error: $*"
    exit "$EXIT_SETUP"
}

have() { command -v "$1" >/dev/null 2>&1; }

# version_at_least HAVE WANT: compares the first three numbers of dotted versions.
version_at_least() {
    local -a have want
    IFS=.-+~ read -ra have <<<"$1"
    IFS=.-+~ read -ra want <<<"$2"
    local i h w
    for i in 0 1 2; do
        h=${have[i]:-0} w=${want[i]:-0}
        [[ $h =~ ^[0-9]+$ ]] || h=0
        ((10#$h > 10#$w)) && return 0
        ((10#$h < 10#$w)) && return 1
    done
    return 0
}
