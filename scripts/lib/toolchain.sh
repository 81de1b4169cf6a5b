# shellcheck shell=bash
# Finding or installing a Rust toolchain that builds the kernel. Sourced after setup.sh.
#
# Two ways: rustup, pinned by rust-toolchain.toml; or the system's own rustc (Debian's rustc-web),
# which has no prebuilt core for the kernel's target and builds it from source.
#
# Afterwards:
#   TOOLCHAIN      rustup | debian
#   SYSROOT        rustc's sysroot
#   OBJCOPY        an objcopy that reads aarch64 ELF files
# and `host_cargo` and `kernel_cargo` call cargo.

MSRV=$(sed -n 's/^rust-version = "\([0-9.]*\)"/\1/p' "$ROOT/Cargo.toml")
CHANNEL=$(sed -n 's/^channel = "\([^"]*\)"/\1/p' "$ROOT/rust-toolchain.toml")
readonly MSRV CHANNEL
TOOLCHAIN='' SYSROOT='' OBJCOPY=''

# toml_list KEY: the words of a one-line list in rust-toolchain.toml.
toml_list() { sed -n "s/^$1 = \[\(.*\)\]/\1/p" "$ROOT/rust-toolchain.toml" | tr -d '" ' | tr , ' '; }

# setup_rust: makes one of the toolchains usable or ends the script.
setup_rust() {
    local wanted=${PLEAT_TOOLCHAIN:-}
    case $wanted in
    '' | rustup | debian) ;;
    *) usage_error "PLEAT_TOOLCHAIN is '$wanted': it must be rustup or debian" ;;
    esac
    # Installed for this user, but not in the PATH of this shell.
    local cargo_home=${CARGO_HOME:-$HOME/.cargo}
    have rustup || [[ ! -x $cargo_home/bin/rustup ]] || PATH=$cargo_home/bin:$PATH

    if [[ $wanted != debian ]] && have rustup; then
        use_rustup && return
        [[ -z $wanted ]] || setup_error "rustup could not install Rust $CHANNEL for $KERNEL_TARGET"
        say "rustup could not provide Rust $CHANNEL for $KERNEL_TARGET: trying the system's Rust"
    elif [[ $wanted == rustup ]]; then
        setup_error "PLEAT_TOOLCHAIN is rustup, and there is no rustup: install it from https://rustup.rs"
    fi
    use_system_rust && return
    # Where the distribution's Rust is too old, it may have rustup as a package.
    if [[ -z $wanted ]] && ! have rustup && have apt-get && [[ -n $(apt_candidate rustup) ]]; then
        apt_install rustup && use_rustup && return
    fi
    setup_error "no Rust for $KERNEL_TARGET could be had: install rustup from https://rustup.rs," \
        "then run 'rustup toolchain install $CHANNEL --target $KERNEL_TARGET' and try again"
}

rustup_sysroot() { RUSTUP_AUTO_INSTALL=0 rustup run "$1" rustc --print sysroot 2>/dev/null; }

# has_component SYSROOT COMPONENT: looks at the files, which needs no network.
has_component() {
    case $2 in
    clippy) [[ -x $1/bin/cargo-clippy ]] ;;
    rustfmt) [[ -x $1/bin/rustfmt ]] ;;
    rust-src) [[ -d $1/lib/rustlib/src/rust/library ]] ;;
    llvm-tools) compgen -G "$1/lib/rustlib/*/bin/llvm-objcopy" >/dev/null ;;
    *) setup_error "rust-toolchain.toml names the component $2, which scripts/lib/toolchain.sh can't check" ;;
    esac
}

# use_rustup: the pinned toolchain with its components and target, installing only what is missing.
use_rustup() {
    local item components targets
    components=$(toml_list components) targets=$(toml_list targets)
    local -a missing=()
    SYSROOT=$(rustup_sysroot "$CHANNEL")
    for item in $components; do
        [[ -n $SYSROOT ]] && has_component "$SYSROOT" "$item" || missing+=(--component "$item")
    done
    for item in $targets; do
        [[ -n $SYSROOT && -d $SYSROOT/lib/rustlib/$item ]] || missing+=(--target "$item")
    done
    if [[ -z $SYSROOT ]] || ((${#missing[@]})); then
        say "installing with rustup: Rust $CHANNEL ${missing[*]}"
        rustup toolchain install "$CHANNEL" --profile minimal --no-self-update "${missing[@]}" >&2 ||
            say "warning: rustup failed"
        SYSROOT=$(rustup_sysroot "$CHANNEL")
    fi
    [[ -n $SYSROOT && -d $SYSROOT/lib/rustlib/$KERNEL_TARGET ]] || return 1
    TOOLCHAIN=rustup
}

# system_rust_complete: whether the rustc in /usr/bin can build the kernel.
system_rust_complete() {
    local version
    [[ -x /usr/bin/rustc && -x /usr/bin/cargo ]] || return 1
    version=$(/usr/bin/rustc --version 2>/dev/null | cut -d' ' -f2)
    version_at_least "$version" "$MSRV" || return 1
    SYSROOT=$(/usr/bin/rustc --print sysroot)
    has_component "$SYSROOT" rust-src && [[ -n $(newest ld.lld) ]]
}

# newest NAME: prints the path of NAME, else of the newest NAME-VERSION, nothing where there is neither.
newest() {
    command -v "$1" && return
    { compgen -G "/usr/bin/$1-*" || true; } | grep -xE ".*/$1-[0-9]+" | sort -V | tail -n 1
}

# system_rust_packages: prints the packages of a Rust that is new enough, if apt has one.
system_rust_packages() {
    local name version
    if version_at_least "$(apt_candidate rustc-web)" "$MSRV"; then
        echo rustc-web cargo-web rust-web-src lld
        return
    fi
    # Ubuntu has a package for each release, Debian's testing the latest under the plain name.
    for name in $(apt-cache pkgnames rustc-1. 2>/dev/null | grep -xE 'rustc-1\.[0-9]+' | sort -rV); do
        version=${name#rustc-}
        version_at_least "$version" "$MSRV" || break
        [[ -n $(apt_candidate "$name") && -n $(apt_candidate "rust-$version-src") ]] || continue
        echo "$name" "cargo-$version" "rust-$version-src" lld
        return
    done
    if version_at_least "$(apt_candidate rustc)" "$MSRV"; then
        echo rustc cargo rust-src lld
    fi
}

# use_system_rust: Debian's Rust with core and alloc built from source, installing what is missing.
use_system_rust() {
    if ! system_rust_complete; then
        have apt-get && { ((EUID == 0)) || have sudo; } || return 1
        apt_update
        local -a packages
        read -ra packages <<<"$(system_rust_packages)"
        ((${#packages[@]})) || return 1
        apt_install "${packages[@]}" ||
            say "warning: apt-get could not install ${packages[*]}; another rustc or rustup package may be in the way"
        system_rust_complete || return 1
    fi
    # cargo finds its subcommands by PATH; rustup's proxies must not come first.
    PATH=/usr/bin:$PATH
    TOOLCHAIN=debian
}

# host_cargo SUBCOMMAND ARGUMENT...: cargo for programs of this machine. It reads .cargo/config.toml from
# where it is started.
host_cargo() (
    cd "$ROOT" || exit
    if [[ $TOOLCHAIN == rustup ]]; then
        exec rustup run "$CHANNEL" cargo "$@"
    else
        RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc exec /usr/bin/cargo "$@"
    fi
)

# kernel_cargo SUBCOMMAND ARGUMENT...: cargo for the kernel's target.
kernel_cargo() {
    local subcommand=$1
    shift
    if [[ $TOOLCHAIN == rustup ]]; then
        host_cargo "$subcommand" --target "$KERNEL_TARGET" "$@"
    else
        # The variable lets a stable compiler build its own core.
        RUSTC_BOOTSTRAP=1 CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER=$(newest ld.lld) \
            host_cargo "$subcommand" --target "$KERNEL_TARGET" -Zbuild-std=core,alloc "$@"
    fi
}

# find_tool NAME: prints the path of an LLVM or GNU tool (objcopy, nm) that reads aarch64 ELF files,
# nothing where there is none.
find_tool() {
    local candidate
    for candidate in "$SYSROOT"/lib/rustlib/*/bin/llvm-"$1"; do
        [[ -x $candidate ]] && echo "$candidate" && return
    done
    command -v "aarch64-linux-gnu-$1" || newest "llvm-$1"
}

# setup_binary_tools: an objcopy that reads aarch64 ELF files; sets OBJCOPY.
setup_binary_tools() {
    OBJCOPY=$(find_tool objcopy)
    if [[ -z $OBJCOPY ]]; then
        setup_package aarch64-linux-gnu-objcopy binutils-aarch64-linux-gnu ||
            setup_error "no objcopy for aarch64: install binutils-aarch64-linux-gnu or llvm"
        OBJCOPY=$(find_tool objcopy)
    fi
}

# rust_version: prints which compiler is used.
rust_version() { "$SYSROOT/bin/rustc" --version; }
