# shellcheck shell=bash
# Building the kernel and its flat Image. Sourced after toolchain.sh.

# build_image VARIANT: VARIANT is selftest (the default features) or bare (none). Leaves
# OUT_DIR/VARIANT/Image and, with its symbols, OUT_DIR/VARIANT/Image.elf. False where the build fails.
build_image() {
    local variant=$1 directory=$OUT_DIR/$1
    local -a features=()
    [[ $variant == selftest ]] || features=(--no-default-features)
    kernel_cargo build --package pleat-kernel --bin pleat --release "${features[@]}" >&2 || return
    mkdir -p "$directory" || return
    # Next to their final names first: a boot that is running must not see half a file.
    cp "$TARGET_DIR/$KERNEL_TARGET/release/pleat" "$directory/Image.elf.new" &&
        "$OBJCOPY" -O binary "$directory/Image.elf.new" "$directory/Image.new" &&
        mv "$directory/Image.elf.new" "$directory/Image.elf" && mv "$directory/Image.new" "$directory/Image"
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
