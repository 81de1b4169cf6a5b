# shellcheck shell=bash
# Installing what is missing, by apt and without a question. Sourced after common.sh.
# Each function looks first and does nothing, without network, where all is there.

readonly QEMU=qemu-system-aarch64
# EFI firmware for QEMU's virt, where Debian's packages put it.
readonly EDK2=/usr/share/qemu-efi-aarch64/QEMU_EFI.fd U_BOOT=/usr/lib/u-boot/qemu_arm64/u-boot.bin
APT_UPDATED=

# as_root COMMAND...: runs a command as root, directly or by sudo.
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        return 1
    fi
}

# need_apt WHAT: ends the script where packages cannot be installed.
need_apt() {
    have apt-get || setup_error "$1 is missing and there is no apt-get here: install $1 and try again"
    ((EUID == 0)) || have sudo || setup_error "$1 is missing: run this as root or install sudo"
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a \
        apt-get -qq -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >&2
}

# apt_update: refreshes the package lists, once for each run of a script.
apt_update() {
    [[ -n $APT_UPDATED ]] && return
    say "refreshing the package lists (apt-get update)"
    apt_get update || say "warning: apt-get update failed; going on with the lists that are there"
    APT_UPDATED=1
}

# apt_candidate PACKAGE: prints the version apt would install, nothing where there is none.
apt_candidate() {
    local version
    version=$(LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([0-9]*:\)\?//p')
    [[ $version == '(none)' ]] || printf '%s' "$version"
}

# apt_install [-t RELEASE] PACKAGE...: never removes a package of the user's.
apt_install() {
    apt_update
    say "installing with apt-get: $*"
    apt_get install --no-install-recommends --no-remove "$@"
}

# setup_host_compiler: a C compiler, which cargo needs as the linker for programs of the host, and the
# certificates with which it fetches crates.
setup_host_compiler() {
    local -a missing=()
    have cc || missing+=(gcc libc6-dev)
    [[ -e /etc/ssl/certs/ca-certificates.crt || -n ${SSL_CERT_FILE:-} || ! -e /etc/debian_version ]] ||
        missing+=(ca-certificates)
    ((${#missing[@]})) || return 0
    need_apt "a C compiler with certificates (${missing[*]})"
    apt_install "${missing[@]}" || setup_error "apt-get could not install ${missing[*]}"
}

qemu_version() { "$QEMU" --version 2>/dev/null | sed -n '1s/.*version \([0-9.]*\).*/\1/p'; }

# qemu_knows_cpu NAME: NAME may carry properties after a comma.
qemu_knows_cpu() { "$QEMU" -cpu help 2>/dev/null | grep -qxE "[[:space:]]+${1%%,*}([[:space:]].*)?"; }

# setup_qemu CPU...: a QEMU that knows these CPUs; an older one is kept where no newer can be had.
setup_qemu() {
    local cpu unknown=
    if have "$QEMU"; then
        for cpu in "$@"; do
            qemu_knows_cpu "$cpu" || unknown+="${unknown:+, }$cpu"
        done
        [[ -n $unknown ]] || return 0
        # From 8.0 on QEMU has every CPU that this project names: what it does not know then is a typo.
        version_at_least "$(qemu_version)" 8.0 && return 0
        say "QEMU $(qemu_version) does not know the CPU $unknown: looking for a newer one"
        have apt-get && { ((EUID == 0)) || have sudo; } || return 0
    fi
    need_apt "$QEMU"
    apt_update
    if version_at_least "$(apt_candidate qemu-system-arm)" 8.0; then
        apt_install qemu-system-arm
    else
        qemu_from_backports
    fi
    have "$QEMU" || setup_error "apt-get could not install qemu-system-arm; install QEMU 8.0 or later yourself"
}

# qemu_from_backports: for Debian 12 (bookworm), whose own QEMU is 7.2.
qemu_from_backports() {
    local codename list=/etc/apt/sources.list.d/bookworm-backports.list
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    if [[ $codename == bookworm ]]; then
        if ! apt-cache policy | grep -q n=bookworm-backports; then
            say "adding Debian's backports, which have QEMU 10, as $list"
            echo 'deb http://deb.debian.org/debian bookworm-backports main' |
                as_root tee "$list" >/dev/null
            APT_UPDATED=
        fi
        apt_install -t bookworm-backports qemu-system-arm qemu-system-data ipxe-qemu && return
        say "warning: the backports could not be used"
    fi
    have "$QEMU" && return
    apt_install qemu-system-arm
    have "$QEMU" && say "warning: QEMU $(qemu_version) is older than 8.0: boots with newer CPUs (neoverse-v1) are lost"
}

# setup_firmware none|edk2|u-boot: the file that QEMU runs in place of its own loader.
setup_firmware() {
    case $1 in
    none) ;;
    edk2) need_file "$EDK2" qemu-efi-aarch64 ;;
    u-boot) need_file "$U_BOOT" u-boot-qemu ;;
    esac
}

# need_file FILE PACKAGE: a file of a Debian package.
need_file() {
    [[ ! -r $1 ]] || return 0
    need_apt "$1"
    apt_install "$2"
    [[ -r $1 ]] || setup_error "apt-get could not install $1 with the package $2"
}

# setup_package COMMAND PACKAGE: a tool that is good to have; false where it can't be had.
setup_package() {
    have "$1" && return
    have apt-get && { ((EUID == 0)) || have sudo; } && apt_install "$2" && have "$1"
}
