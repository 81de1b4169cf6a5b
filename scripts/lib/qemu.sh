# shellcheck shell=bash
# The one place that knows QEMU's command line. Sourced after setup.sh and raspi.sh.

# Where a boot with --image-at keeps what QEMU's own loader would have provided: below the lowest
# address for an Image and above the device tree that QEMU itself puts at the start of RAM.
readonly TRAMPOLINE_ADDRESS=0x40100000 DTB_ADDRESS=0x40101000 LOWEST_IMAGE_ADDRESS=0x40200000
QEMU_COMMAND=()

# little_endian BYTES VALUE: prints a number as the escapes of its bytes.
little_endian() {
    local i
    for ((i = 0; i < $1; i++)); do
        printf '\\x%02x' $((($2 >> (8 * i)) & 0xff))
    done
}

# write_trampoline FILE X0 ENTRY: a few instructions that do a boot loader's last step.
write_trampoline() {
    local word bytes=
    # ldr x0, .+16; ldr x4, .+20; br x4; udf #0
    for word in 0x58000080 0x580000a4 0xd61f0080 0; do
        bytes+=$(little_endian 4 $((word)))
    done
    bytes+=$(little_endian 8 $(($2)))$(little_endian 8 $(($3)))
    # Its name says its content, so that boots side by side may write the same file.
    # shellcheck disable=SC2059 # the escapes are meant to be interpreted
    printf "$bytes" >"$1.$$" && mv "$1.$$" "$1"
}

# needs_boot_option: whether it takes more than the Image on a disk.
needs_boot_option() { [[ $opt_firmware == u-boot && -n $opt_initrd ]]; }

# esp_of IMAGE: prints the directory that QEMU serves as an EFI system partition. With an initrd it is of this boot alone.
esp_of() { if needs_boot_option; then echo "$1.esp-$$"; else echo "$1.esp"; fi; }

# remove_esp IMAGE: removes it, where it is of this boot alone.
remove_esp() { if needs_boot_option; then rm -rf -- "$(esp_of "$1")"; fi; }

# write_esp IMAGE: makes that directory, with the Image where firmware looks on a disk that it does not know.
write_esp() {
    local directory link
    if needs_boot_option; then
        write_initrd_esp "$(esp_of "$1")" "$1" "$opt_initrd"
        return
    fi
    directory=$(esp_of "$1")/EFI/BOOT
    link=$directory/BOOTAA64.EFI
    # Of boots side by side the first makes it; the others leave it alone.
    [[ $link -ef $1 ]] || { mkdir -p "$directory" && ln -sfn "$(realpath "$1")" "$link"; }
}

# firmware_command: adds to QEMU_COMMAND how EFI firmware finds the Image and its load options.
firmware_command() {
    local esp
    esp=$(esp_of "$opt_image")
    if [[ $opt_firmware == edk2 ]]; then
        QEMU_COMMAND+=(-bios "$EDK2")
        # On a disk that it does not know there are no load options. With any, QEMU gives it the file itself, which it
        # starts just so.
        if [[ -n $opt_args$opt_initrd ]]; then
            QEMU_COMMAND+=(-kernel "$opt_image")
            [[ -z $opt_args ]] || QEMU_COMMAND+=(-append "$opt_args")
            [[ -z $opt_initrd ]] || QEMU_COMMAND+=(-initrd "$opt_initrd")
            return
        fi
    else
        QEMU_COMMAND+=(-bios "$U_BOOT")
        # What QEMU has as -append becomes bootargs in U-Boot's environment, and that the load options, but only beside a
        # kernel. That is tried first and must be none, so that the disk is next: U-Boot itself is no Image. A boot
        # option has its own load options, here none; the kernel then takes bootargs of the device tree, the same words.
        [[ -z $opt_args ]] || QEMU_COMMAND+=(-kernel "$U_BOOT" -append "$opt_args")
    fi
    # shellcheck disable=SC2054 # commas are QEMU's
    QEMU_COMMAND+=(-drive "file=fat:${esp//,/,,},format=raw,if=none,id=esp,readonly=on" -device virtio-blk-device,drive=esp)
}

# pi_command: sets QEMU_COMMAND for a Raspberry Pi 4, whose first UART is the PL011 and second the mini-UART.
pi_command() {
    local line=$opt_args word console=
    local -a serial=(-serial stdio -serial null)
    for word in $line; do
        [[ $word != console=tty@(AMA0|S0|S1)?(,*) ]] || console=${word#console=}
    done
    # Its device tree says the mini-UART. A card has its own line.
    [[ -n $console$opt_sdcard ]] || line="console=ttyAMA0${line:+ $line}"
    [[ $console != ttyS* ]] || serial=(-serial null -serial stdio)
    QEMU_COMMAND=("$QEMU" -machine raspi4b -display none -monitor none "${serial[@]}" -nic none
        -semihosting-config "enable=on,target=native" -kernel "$opt_image" -dtb "${opt_dtb:-$PI_FILES/$PI_DTB}")
    [[ -z $line ]] || QEMU_COMMAND+=(-append "$line")
    [[ -z $opt_initrd ]] || QEMU_COMMAND+=(-initrd "$opt_initrd")
    # shellcheck disable=SC2054 # commas are QEMU's
    [[ -z $opt_sdcard ]] || QEMU_COMMAND+=(-drive "file=${opt_sdcard//,/,,},format=raw,if=sd,snapshot=on")
    QEMU_COMMAND+=("${opt_qemu[@]}")
}

# qemu_command: sets QEMU_COMMAND from the options (the opt_ variables of scripts/run).
qemu_command() {
    [[ $opt_machine == virt ]] || {
        pi_command
        return
    }
    local machine=virt,gic-version=$opt_gic
    [[ $opt_el == 1 ]] || machine+=,virtualization=on
    # With ACPI, edk2 has no device tree.
    [[ $opt_firmware != edk2 ]] || machine+=,acpi=off
    [[ -z $opt_dump_dtb ]] || machine+=,dumpdtb=${opt_dump_dtb//,/,,}
    # shellcheck disable=SC2054 # commas are QEMU's
    QEMU_COMMAND=("$QEMU" -machine "$machine" -cpu "$opt_cpu" -smp "$opt_smp" -m "$opt_memory"
        -display none -monitor none -serial stdio -nic none -semihosting-config enable=on,target=native)
    if [[ -n $opt_dump_dtb ]]; then
        :
    elif [[ -n $opt_image_at ]]; then
        local x0=$opt_x0 trampoline
        if [[ -n $opt_dtb ]]; then
            QEMU_COMMAND+=(-device "loader,file=${opt_dtb//,/,,},addr=$DTB_ADDRESS,force-raw=on")
            x0=${x0:-$DTB_ADDRESS}
        fi
        x0=${x0:-0}
        trampoline=$OUT_DIR/trampoline-$opt_image_at-$x0
        mkdir -p "$OUT_DIR" && write_trampoline "$trampoline" "$x0" "$opt_image_at"
        QEMU_COMMAND+=(
            -device "loader,file=${opt_image//,/,,},addr=$opt_image_at,force-raw=on"
            -device "loader,file=${trampoline//,/,,},addr=$TRAMPOLINE_ADDRESS,force-raw=on"
            -device "loader,addr=$TRAMPOLINE_ADDRESS,cpu-num=0")
    elif [[ $opt_firmware != none ]]; then
        firmware_command
    else
        QEMU_COMMAND+=(-kernel "$opt_image")
        [[ -z $opt_args ]] || QEMU_COMMAND+=(-append "$opt_args")
        [[ -z $opt_initrd ]] || QEMU_COMMAND+=(-initrd "$opt_initrd")
    fi
    QEMU_COMMAND+=("${opt_qemu[@]}")
}
