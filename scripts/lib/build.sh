# shellcheck shell=bash
# Building the kernel and its flat Image, and the programs that are embedded in it. Sourced after toolchain.sh.

# The programs of tests/user as they are built, and packed.
readonly PROGRAMS=$OUT_DIR/bin INITRAMFS=$OUT_DIR/initramfs.cpio

# build_programs: leaves the programs in PROGRAMS and INITRAMFS, which changes only if one of them does.
build_programs() {
    # Files of its own for each run: there may be several at a time.
    local built=$TARGET_DIR/user/$KERNEL_TARGET/release new=$INITRAMFS.$$.new program name
    kernel_cargo build --manifest-path tests/user/Cargo.toml --target-dir "$TARGET_DIR/user" --release --bins >&2 || return
    mkdir -p "$PROGRAMS" && {
        cpio_entry bin 040755 /dev/null
        for program in "$ROOT"/tests/user/src/bin/*.rs; do
            name=$(basename "$program" .rs)
            # In one step, since another may be packing it.
            cp "$built/$name" "$new.$name" && mv "$new.$name" "$PROGRAMS/$name" &&
                cpio_entry "bin/$name" 100755 "$PROGRAMS/$name" || return
        done
        cpio_entry 'TRAILER!!!' 0 /dev/null
    } >"$new" || return
    if cmp -s "$new" "$INITRAMFS"; then rm "$new"; else mv "$new" "$INITRAMFS"; fi
}

# cpio_entry NAME MODE FILE: prints an entry of a cpio archive of the format newc; the mode is octal. Each entry has an inode
# number of its own, and no time, so that the same programs give the same archive.
cpio_entry() {
    local name=$1 mode=$2 file=$3 size
    size=$(stat -c %s "$file") || return
    [[ -f $file ]] || size=0
    CPIO_INODE=$((${CPIO_INODE:-0} + 1))
    printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\0' \
        "$CPIO_INODE" $((8#$mode)) 0 0 1 0 "$size" 0 0 0 0 $((${#name} + 1)) 0 "$name"
    zeroes $((110 + ${#name} + 1))
    cat "$file"
    zeroes "$size"
}

# zeroes BYTES: prints what is missing to a multiple of four.
zeroes() {
    local padding=$(((4 - $1 % 4) % 4))
    ((padding == 0)) || head -c "$padding" /dev/zero
}

# build_image VARIANT: VARIANT is selftest (the default features), bare (none) or fault-injection (the default ones, and
# that). Leaves OUT_DIR/VARIANT/Image and, with its symbols, OUT_DIR/VARIANT/Image.elf. False where the build fails.
build_image() {
    local variant=$1 directory=$OUT_DIR/$1
    local -a features=()
    case $variant in
        bare) features=(--no-default-features) ;;
        fault-injection) features=(--features fault-injection) ;;
    esac
    [[ $variant == bare ]] || build_programs || return
    PLEAT_INITRAMFS=$INITRAMFS kernel_cargo build --package pleat-kernel --bin pleat --release "${features[@]}" >&2 || return
    mkdir -p "$directory" || return
    # Next to their final names first: a boot that is running must not see half a file.
    cp "$TARGET_DIR/$KERNEL_TARGET/release/pleat" "$directory/Image.elf.new" &&
        "$OBJCOPY" -O binary "$directory/Image.elf.new" "$directory/Image.new" &&
        mv "$directory/Image.elf.new" "$directory/Image.elf" && mv "$directory/Image.new" "$directory/Image"
}

# build_gate: leaves the assembly of two calls of mm in OUT_DIR/gate/with-efi.s and without-efi.s. False where a build fails.
build_gate() {
    local directory=$OUT_DIR/gate name
    mkdir -p "$directory" || return
    for name in with without; do
        local -a features=()
        [[ $name == without ]] || features=(--features efi)
        # Where cargo finds it fresh it is not written again, so it stays.
        kernel_cargo rustc --package pleat-gate --lib --release "${features[@]}" \
            -- -C debuginfo=0 "--emit=asm=$directory/$name-efi.s" >&2 || return
        [[ -s $directory/$name-efi.s ]] || return
    done
}

# image_bytes VARIANT: prints the size of the file.
image_bytes() { stat -c %s "$OUT_DIR/$1/Image"; }

# image_memory_bytes VARIANT: prints image_size of the arm64 header, which counts .bss as well.
image_memory_bytes() { od -An -t u8 -j 16 -N 8 "$OUT_DIR/$1/Image" | tr -d ' '; }

# kib BYTES: rounded up.
kib() { echo $((($1 + 1023) / 1024)); }

# image_sizes VARIANT: prints one line.
image_sizes() {
    local with='with the self-tests'
    [[ $1 == selftest ]] || with='without the self-tests'
    echo "Image $with: $(kib "$(image_bytes "$1")") KiB," \
        "$(kib "$(image_memory_bytes "$1")") KiB in memory"
}

# run_card ARGUMENT...: the program that writes and reads cards for a Raspberry Pi, built first. Prints why it fails.
run_card() {
    host_cargo build --quiet --package pleat-card --release >&2 || {
        echo "the program that writes and reads cards could not be built"
        return 1
    }
    "$TARGET_DIR/release/pleat-card" "$@" 2>&1
}

# card_files CARD: prints the directory for what is read from the image of a card.
card_files() { echo "$OUT_DIR/cards/$(realpath -- "$1" | sha256sum | cut -c1-16)"; }
