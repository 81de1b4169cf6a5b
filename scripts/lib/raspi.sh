# shellcheck shell=bash
# What a Raspberry Pi 4 needs that is not built here: firmware and device tree, from Debian's archive. Sourced after setup.sh.

# The archive is asked as apt asks it, so that signatures and checksums are apt's to check, but with sources and lists of
# its own: another architecture and another release than this machine's, and no change to it.
readonly PI_ARCHIVE=http://deb.debian.org/debian PI_RELEASE=trixie
readonly PI_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# Where the files are kept, by the names that --firmware-dir asks for.
readonly PI_FILES=$OUT_DIR/raspi4b
readonly PI_DTB=bcm2711-rpi-4-b.dtb

# setup_pi_qemu: a QEMU that has the board, or the end of the script.
setup_pi_qemu() {
    setup_qemu cortex-a72
    ! qemu_knows_pi || return 0
    if have apt-get && { ((EUID == 0)) || have sudo; }; then
        say "QEMU $(qemu_version) has no machine raspi4b: looking for a newer one"
        apt_update
        if version_at_least "$(apt_candidate qemu-system-arm)" 9.0; then
            apt_install qemu-system-arm
        else
            qemu_from_backports
        fi
    fi
    qemu_knows_pi || setup_error "QEMU $(qemu_version) has no machine raspi4b: install QEMU 9.0 or later"
}

qemu_knows_pi() { "$QEMU" -machine help 2>/dev/null | grep -q '^raspi4b '; }

# setup_pi: makes PI_FILES complete or ends the script.
setup_pi() {
    ! pi_is_whole || return 0
    local work status given="give your own: --dtb FILE to scripts/run, --firmware-dir DIR to scripts/sdcard"
    { have apt-get && have dpkg-deb; } ||
        setup_error "the Raspberry Pi's firmware and device tree come from Debian's archive by apt-get, which is missing:" \
            "$given"
    need_file "$PI_KEYRING" debian-archive-keyring
    { mkdir -p "$OUT_DIR" && work=$(mktemp -d "$PI_FILES.XXXXXX"); } || setup_error "$OUT_DIR can't be written"
    say "fetching the Raspberry Pi's firmware and device tree from Debian's archive ($PI_RELEASE), once"
    # Not in a condition, where `set -e` would have no effect inside.
    fetch_pi "$work"
    status=$?
    if ((status)); then
        rm -rf "$work"
        setup_error "the Raspberry Pi's firmware and device tree could not be fetched from $PI_ARCHIVE: $given"
    fi
    # Of two at once the first one wins.
    pi_is_whole || rm -rf "$PI_FILES"
    mv -T "$work/files" "$PI_FILES" 2>/dev/null || pi_is_whole ||
        setup_error "$PI_FILES can't be written"
    rm -rf "$work"
}

# What an older version of this script has fetched is without the text of the GPL, which is that of the last package.
pi_is_whole() { grep -qs ' base-files_' "$PI_FILES/packages"; }

# fetch_pi DIRECTORY: leaves DIRECTORY/files as PI_FILES is to be. False where that fails.
fetch_pi() (
    set -e
    cd "$1"
    mkdir -p lists/partial cache/archives/partial debs files
    : >status
    echo "deb [arch=arm64 signed-by=$PI_KEYRING] $PI_ARCHIVE $PI_RELEASE main non-free-firmware" >sources.list
    cat >apt.conf <<END
Dir::Etc::SourceList "$PWD/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$PWD";
Dir::State::status "$PWD/status";
Dir::Cache "$PWD/cache";
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
END
    export APT_CONFIG=$PWD/apt.conf
    # Lists that could not be fetched or verified are an error, not a warning.
    apt-get -qq -o APT::Update::Error-Mode=any update >&2
    local linux
    # The package of the newest kernel is empty, and depends on the one that has it.
    linux=$(apt-cache show linux-image-arm64 | sed -n 's/^Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1)
    [[ -n $linux ]]
    (cd debs && apt-get -qq download raspi-firmware "$linux" base-files >&2)

    unpack debs/raspi-firmware_* './usr/lib/raspi-firmware/*4.*' ./usr/share/doc/raspi-firmware/copyright
    mv usr/lib/raspi-firmware/start4.elf usr/lib/raspi-firmware/fixup4.dat files
    mv usr/share/doc/raspi-firmware/copyright files/LICENCE.broadcom
    unpack debs/linux-image-* "./usr/lib/linux-image-*/broadcom/$PI_DTB" './usr/share/doc/linux-image-*/copyright'
    mv usr/lib/linux-image-*/broadcom/"$PI_DTB" files
    # Which refers to the licence where every Debian has it.
    unpack debs/base-files_* ./usr/share/common-licenses/GPL-2
    cat usr/share/doc/linux-image-*/copyright usr/share/common-licenses/GPL-2 >files/COPYING.linux
    (cd debs && sha256sum -- *.deb) >files/packages
)

# unpack DEB PATTERN...: the files of a package that match, below the current directory.
unpack() {
    local deb=$1
    shift
    dpkg-deb --fsys-tarfile "$deb" | tar -x --wildcards "$@"
}

# card_is_sound IMAGE: whether programs that did not write a card with this kernel find its file system in order, and the
# kernel on it, byte for byte.
card_is_sound() {
    local work status
    work=$(mktemp -d) || return
    # Its only partition is from 1 MiB on.
    "$ROOT/scripts/sdcard" --image "$1" "$work/card.img" &&
        dd if="$work/card.img" of="$work/volume" bs=1M skip=1 status=none &&
        fsck.fat -n "$work/volume" &&
        mcopy -i "$work/card.img@@1M" ::kernel8.img "$work/kernel" &&
        cmp "$1" "$work/kernel"
    status=$?
    rm -rf "$work"
    return "$status"
}
