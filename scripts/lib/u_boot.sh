# shellcheck shell=bash
# What makes U-Boot offer an initial RAM disk by LoadFile2. It does so for a boot option that names one; so a script, which
# it runs from the disk, makes such an option and starts it. Sourced after qemu.sh, whose little_endian it uses.
#
#   boot.scr      the script
#   option        the load option (UEFI, 3.1.3), with zeros for what only U-Boot knows of the partition
#   Image         under another name than firmware looks for, or U-Boot 2025.01 would start it before the script
#   initrd

# Where the script puts things: in memory that U-Boot keeps for kernels.
readonly OPTION_ADDRESS=0x40400000 MBR_ADDRESS=0x40500000

# write_initrd_esp DIRECTORY IMAGE INITRD: makes the directory.
write_initrd_esp() {
    local hd media end='\x7f\xff\x04\x00' label paths option nodes=() node script
    # HD(1,MBR,…): number, start and size of the partition, signature of the disk.
    hd="\\x04\\x01$(little_endian 2 42)$(little_endian 4 1)$(little_endian 8 0)$(little_endian 8 0)"
    hd+="$(little_endian 8 0)$(little_endian 8 0)\\x01\\x01"
    # VenMedia(5568e427-68fc-4f3d-ac74-ca555231cc68): the path behind it is that of an initial RAM disk.
    media='\x04\x03\x14\x00\x27\xe4\x68\x55\xfc\x68\x3d\x4f\xac\x74\xca\x55\x52\x31\xcc\x68'
    label=$(utf16 Pleat)
    paths=$hd$(file_node '\Image')$end$media
    # Attributes: active. Then how long both paths are together.
    option=$(little_endian 4 1)$(little_endian 2 "$(bytes_of "$paths$hd$(file_node '\initrd')$end")")$label
    nodes=("$(bytes_of "$option")" "$(bytes_of "$option$paths")")
    option+=$paths$hd$(file_node '\initrd')$end

    # shellcheck disable=SC2016 # U-Boot's variables
    script='load ${devtype} ${devnum}:${distro_bootpart} '"$OPTION_ADDRESS option"'
setenv option '"$OPTION_ADDRESS"':${filesize}
virtio read '"$MBR_ADDRESS 0 1"$'\n'
    for node in "${nodes[@]}"; do
        # From the first entry of the partition table, and the disk's signature.
        script+=$(printf 'cp.b %#x %#x 4\n' \
            $((MBR_ADDRESS + 0x1c6)) $((OPTION_ADDRESS + node + 8)) \
            $((MBR_ADDRESS + 0x1ca)) $((OPTION_ADDRESS + node + 16)) \
            $((MBR_ADDRESS + 0x1b8)) $((OPTION_ADDRESS + node + 24)))$'\n'
    done
    # Beside the options that U-Boot makes by itself. Without an end here, it would go on without the initrd.
    # shellcheck disable=SC2016 # U-Boot's variables
    script+='setenv -e -bs -rt -i ${option} Boot0101
setenv -e -bs -rt BootNext =H0101
bootefi bootmgr ${fdtcontroladdr}
poweroff
'
    # shellcheck disable=SC2059 # the escapes are meant to be interpreted
    mkdir -p "$1" && printf "$option" >"$1/option" && write_script "$1/boot.scr" "$script" &&
        ln -sfn "$(realpath "$2")" "$1/Image" && ln -sfn "$(realpath "$3")" "$1/initrd"
}

# utf16 TEXT: prints the escapes of an ASCII text in UTF-16, with its end.
utf16() {
    local i
    for ((i = 0; i < ${#1}; i++)); do printf '\\x%02x\\x00' "'${1:i:1}"; done
    printf '\\x00\\x00'
}

# bytes_of ESCAPES: prints how many bytes they stand for.
bytes_of() { echo $((${#1} / 4)); }

# file_node NAME: prints the escapes of a device path node.
file_node() {
    local name
    name=$(utf16 "$1")
    printf %s "\\x04\\x04$(little_endian 2 $((4 + $(bytes_of "$name"))))$name"
}

# big_endian VALUE...: prints numbers as the escapes of their four bytes.
big_endian() {
    local value i
    for value in "$@"; do
        for i in 24 16 8 0; do printf '\\x%02x' $((value >> i & 0xff)); done
    done
}

# crc32 FILE: prints it as a number, as gzip puts it behind what it packs.
crc32() { echo "0x$(gzip -nc "$1" | tail -c 8 | od -An -N4 -tx4 --endian=little | tr -d ' ')"; }

# write_script FILE TEXT: a script as U-Boot takes it: header, length of the text, 0, text.
write_script() {
    local data=$1.data header_crc=0 data_crc i
    # shellcheck disable=SC2059 # the escapes are meant to be interpreted
    printf "$(big_endian ${#2} 0)%s" "$2" >"$data" && data_crc=$(crc32 "$data") || return
    # The header's checksum is that of the header with 0 in its place.
    for i in 1 2; do
        # Magic number, checksum, time, size, load and entry address, checksum of the data; Linux, arm64, script, not packed;
        # 32 bytes of a name.
        # shellcheck disable=SC2059 # the escapes are meant to be interpreted
        printf "$(big_endian 0x27051956 "$header_crc" 0 $((${#2} + 8)) 0 0 "$data_crc" 0x05160600 0 0 0 0 0 0 0 0)" >"$1" ||
            return
        ((i == 2)) || header_crc=$(crc32 "$1")
    done
    cat "$data" >>"$1" && rm "$data"
}
