//! The image of an SD card that a Raspberry Pi 4 starts from: a master boot record and one FAT32 partition. It is made in
//! memory, without privileges, and only of what it is given: the same contents are the same bytes.
//!
//! ```text
//! sector 0     the partition table
//! sector 2048  FAT32   start4.elf fixup4.dat LICENCE.broadcom   the VideoCore's firmware
//!                      config.txt                               what that is to start:
//!                      kernel8.img cmdline.txt                  the arm64 Image and its boot arguments
//!                      LICENSE-MIT LICENSE-APACHE               the licences of that Image: one of them
//!                      bcm2711-rpi-4-b.dtb COPYING.linux        the device tree
//!                      initramfs                                where there is one
//!                      packages                                 where firmware and tree are from, if that is known
//! ```
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Cursor, Read, Write};

use dtoolkit::fdt::Fdt;
use dtoolkit::{FdtStringListIterator, Node, Property};
use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use kernel::dt::{self, DtError};
use mbrman::{CHS, MBR, MBRPartitionEntry};

mod whole;

/// What the firmware must come with: its two parts, their licence, the device tree of the board, and the licence of that,
/// which is Linux's. The names are those of the project that distributes it.
pub const FIRMWARE: [&str; 5] = [FIRMWARE_ELF, "fixup4.dat", "LICENCE.broadcom", TREE, LICENCE_OF_TREE];
/// The packages that they were taken from, by name, version and checksum.
pub const PACKAGES: &str = "packages";
const FIRMWARE_ELF: &str = "start4.elf";
const LICENCE_OF_TREE: &str = "COPYING.linux";
/// What the text of the GNU General Public License begins with: a reference to it is not enough.
const GPL: &[u8] = b"GNU GENERAL PUBLIC LICENSE";
/// The licences of the kernel.
const LICENCES: [(&str, &[u8]); 2] = [
    ("LICENSE-MIT", include_bytes!("../../../LICENSE-MIT")),
    ("LICENSE-APACHE", include_bytes!("../../../LICENSE-APACHE")),
];
const TREE: &str = "bcm2711-rpi-4-b.dtb";
/// What the tree's root is compatible with.
const MACHINE: &str = "brcm,bcm2711";
const KERNEL: &str = "kernel8.img";
const CMDLINE: &str = "cmdline.txt";
const INITRD: &str = "initramfs";
const CONFIG: &str = "config.txt";

const SECTOR: usize = 512;
/// Where the partition begins, in sectors: 1 MiB, as partitioning tools have it.
const FIRST_SECTOR: u32 = 2048;
/// In sectors of a FAT32 volume, as it is formatted here.
const BACKUP_BOOT_SECTOR: usize = 6;
/// Offset of BPB_HiddSec in a boot sector.
const HIDDEN_SECTORS: usize = 28;
/// FAT32, addressed by sectors.
const PARTITION_TYPE: u8 = 0x0c;
/// The least bytes of a card: a power of two, as emulators want it, with as many clusters as FAT32 has.
const SMALLEST: usize = 64 << 20;
/// The most.
pub const LARGEST: usize = 2 << 30;
/// Of the volume and of the disk.
const ID: [u8; 4] = *b"PLEA";

/// What goes onto a card.
pub struct Contents {
    /// The files of [`FIRMWARE`], in that order.
    pub firmware: Vec<Vec<u8>>,
    /// [`PACKAGES`].
    pub packages: Option<Vec<u8>>,
    /// The arm64 Image.
    pub kernel: Vec<u8>,
    /// The boot arguments, one line.
    pub cmdline: String,
    /// The initial RAM disk.
    pub initrd: Option<Vec<u8>>,
}

/// What the firmware starts.
#[derive(PartialEq, Eq, Debug)]
pub struct Start {
    /// The arm64 Image.
    pub kernel: Vec<u8>,
    /// The device tree.
    pub tree: Vec<u8>,
    /// The boot arguments.
    pub cmdline: Vec<u8>,
    /// The initial RAM disk.
    pub initrd: Option<Vec<u8>>,
}

/// Why a card can't be made or read.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file is empty.
    Empty,
    /// The kernel is no arm64 Image.
    NoImage,
    /// The file of the firmware with this name is not what it should be.
    NoFirmware(&'static str),
    /// The licence with this name is without its text.
    NoLicence(&'static str),
    /// The kernel is less than its headers say.
    CutImage,
    /// The device tree can't be read.
    Tree(DtError),
    /// It is that of another machine.
    OtherMachine,
    /// The boot arguments are more than a line.
    Lines,
    /// All of it needs so many bytes.
    TooLarge(usize),
    /// There is no partition table, or its first partition is no FAT32 or not inside the card.
    NoPartition,
    /// The file with this name is not there.
    NotThere(String),
    /// What the file system answered.
    FileSystem(io::Error),
    /// What the partition table answered.
    PartitionTable(mbrman::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::NoImage => f.write_str("the kernel is no arm64 Image"),
            Self::CutImage => f.write_str("the kernel is less than its headers say"),
            Self::OtherMachine => write!(f, "the device tree {TREE} is not that of a {MACHINE}"),
            Self::NoFirmware(name) => write!(f, "the firmware's {name} is not what its name says"),
            Self::NoLicence(name) => write!(f, "the firmware's {name} is without the text of the licence"),
            Self::Tree(error) => write!(f, "the device tree {TREE} can't be read: {error}"),
            Self::Lines => f.write_str("the boot arguments must be one line"),
            Self::TooLarge(bytes) => write!(f, "{bytes} bytes do not fit on a card of {} MiB", LARGEST >> 20),
            Self::NoPartition => f.write_str("this is no card with one FAT32 partition"),
            Self::NotThere(name) => write!(f, "{name} is not on the card"),
            Self::FileSystem(error) => write!(f, "its file system: {error}"),
            Self::PartitionTable(error) => write!(f, "its partition table: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::FileSystem(error)
    }
}

/// The earliest time that FAT knows, for every file.
#[derive(Debug)]
struct NoTime;

impl TimeProvider for NoTime {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

/// The image of a card with these contents.
///
/// # Errors
/// Where something is not what it should be, or too large.
pub fn write(contents: &Contents) -> Result<Vec<u8>, Error> {
    check(contents)?;
    let mut config = include_str!("../config.txt").to_owned();
    if contents.initrd.is_some() {
        config += &format!("initramfs {INITRD} followkernel\n");
    }
    let cmdline = format!("{}\n", contents.cmdline);
    let mut files: Vec<(&str, &[u8])> =
        FIRMWARE.into_iter().zip(contents.firmware.iter().map(Vec::as_slice)).collect();
    files.extend([(CONFIG, config.as_bytes()), (CMDLINE, cmdline.as_bytes()), (KERNEL, &contents.kernel)]);
    files.extend(LICENCES);
    files.extend(contents.packages.iter().map(|packages| (PACKAGES, packages.as_slice())));
    files.extend(contents.initrd.iter().map(|initrd| (INITRD, initrd.as_slice())));

    let needed: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    // An eighth is more than the file system needs for itself.
    let fits = |size: &usize| needed <= size - size / 8;
    let size =
        std::iter::successors(Some(SMALLEST), |size| Some(size * 2)).take_while(|&size| size <= LARGEST);
    let size = size.into_iter().find(fits).ok_or(Error::TooLarge(needed))?;

    let mut card = vec![0; size];
    let sectors = (size / SECTOR) as u32 - FIRST_SECTOR;
    write_partition_table(&mut card, sectors).map_err(Error::PartitionTable)?;
    let partition = &mut card[FIRST_SECTOR as usize * SECTOR..];
    let format = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .total_sectors(sectors)
        .volume_id(u32::from_le_bytes(ID))
        .volume_label(*b"PLEAT      ");
    fatfs::format_volume(Cursor::new(&mut *partition), format)?;
    // Which fatfs leaves out: the sectors before the volume, in its boot sector and the copy of that.
    for boot_sector in [0, BACKUP_BOOT_SECTOR] {
        let at = boot_sector * SECTOR + HIDDEN_SECTORS;
        partition[at..at + 4].copy_from_slice(&FIRST_SECTOR.to_le_bytes());
    }
    let volume = FileSystem::new(Cursor::new(partition), FsOptions::new().time_provider(&NoTime))?;
    for (name, bytes) in files {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    // Counts what is free, for those who look before they write.
    volume.stats()?;
    volume.unmount()?;
    Ok(card)
}

fn check(contents: &Contents) -> Result<(), Error> {
    // Where the boot protocol has it (Linux's Documentation/arch/arm64/booting.rst).
    if contents.kernel.get(56..60) != Some(b"ARM\x64") {
        return Err(Error::NoImage);
    }
    if !whole::image(&contents.kernel) {
        return Err(Error::CutImage);
    }
    for (name, bytes) in FIRMWARE.into_iter().zip(&contents.firmware) {
        match name {
            TREE => check_tree(bytes)?,
            FIRMWARE_ELF if !whole::elf(bytes) => return Err(Error::NoFirmware(name)),
            LICENCE_OF_TREE if !bytes.windows(GPL.len()).any(|text| text == GPL) => {
                return Err(Error::NoLicence(name));
            }
            _ => {}
        }
    }
    if contents.cmdline.contains(['\n', '\r', '\0']) { Err(Error::Lines) } else { Ok(()) }
}

fn check_tree(bytes: &[u8]) -> Result<(), Error> {
    dt::parse(bytes).map_err(Error::Tree)?;
    let root = Fdt::new_unchecked(bytes).root();
    let compatible = root.property("compatible");
    let mut names =
        compatible.iter().filter_map(|list| list.value_as::<FdtStringListIterator<'_>>().ok()).flatten();
    if names.any(|name| name == MACHINE) { Ok(()) } else { Err(Error::OtherMachine) }
}

fn write_partition_table(card: &mut [u8], sectors: u32) -> Result<(), mbrman::Error> {
    let mut disk = Cursor::new(card);
    let mut table = MBR::new_from(&mut disk, SECTOR as u32, ID)?;
    table[1] = MBRPartitionEntry {
        boot: mbrman::BOOT_ACTIVE,
        first_chs: CHS::empty(),
        sys: PARTITION_TYPE,
        last_chs: CHS::empty(),
        starting_lba: FIRST_SECTOR,
        sectors,
    };
    table.write_into(&mut disk)
}

/// What the firmware would start from a card as [`write()`] makes it: what its config.txt names, read from its partition.
///
/// # Errors
/// Where it is none, or something is missing.
pub fn read(card: &[u8]) -> Result<Start, Error> {
    let table = MBR::read_from(&mut Cursor::new(card), SECTOR as u32).map_err(|_| Error::NoPartition)?;
    let entry = table.get(1).filter(|entry| entry.sys == PARTITION_TYPE).ok_or(Error::NoPartition)?;
    let start = entry.starting_lba as usize * SECTOR;
    let partition = card.get(start..start + entry.sectors as usize * SECTOR).ok_or(Error::NoPartition)?;
    // The file system is opened for writing, though nothing is written.
    let mut partition = partition.to_vec();
    let volume = FileSystem::new(Cursor::new(partition.as_mut_slice()), FsOptions::new())?;
    let load = |name: &str| {
        let mut bytes = Vec::new();
        let mut file = volume.root_dir().open_file(name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotThere(name.to_owned()),
            _ => Error::FileSystem(error),
        })?;
        file.read_to_end(&mut bytes)?;
        Ok::<_, Error>(bytes)
    };

    let config = String::from_utf8_lossy(&load(CONFIG)?).into_owned();
    let value = |key: &str| config.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let named = |key: &str| load(value(key).ok_or_else(|| Error::NotThere(format!("`{key}` in {CONFIG}")))?);
    let initrd = value("initramfs ").and_then(|words| words.split_whitespace().next());
    let tree = named("device_tree=")?;
    dt::parse(&tree).map_err(Error::Tree)?;
    Ok(Start {
        kernel: named("kernel=")?,
        tree,
        cmdline: load(CMDLINE)?,
        initrd: initrd.map(load).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DTB: &[u8] = include_bytes!("../../../kernel/tests/data/rpi4-model.dtb");

    fn contents() -> Contents {
        Contents {
            firmware: vec![
                whole::tests::an_elf(1_300_000),
                vec![1; 5436],
                b"licence".to_vec(),
                DTB.to_vec(),
                [b"see:\n", GPL].concat(),
            ],
            packages: None,
            kernel: whole::tests::an_image(700_001),
            cmdline: "console=ttyAMA0,115200 selftest=\"a b\"".to_owned(),
            initrd: None,
        }
    }

    /// Every file, by name.
    fn listed(card: &[u8]) -> Vec<(String, u64)> {
        let mut partition = card[FIRST_SECTOR as usize * SECTOR..].to_vec();
        let volume = FileSystem::new(Cursor::new(partition.as_mut_slice()), FsOptions::new()).unwrap();
        assert_eq!((volume.fat_type(), volume.volume_label().as_str()), (FatType::Fat32, "PLEAT"));
        let mut files: Vec<_> = volume
            .root_dir()
            .iter()
            .map(Result::unwrap)
            .map(|entry| (entry.file_name(), entry.len()))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn what_is_written_is_read() {
        let mut contents = contents();
        for initrd in [None, Some(vec![0x5a; 1_234_567])] {
            contents.initrd = initrd;
            let card = write(&contents).unwrap();
            let start = read(&card).unwrap();
            assert_eq!((&start.kernel, &start.tree), (&contents.kernel, &contents.firmware[3]));
            assert_eq!(start.cmdline, format!("{}\n", contents.cmdline).into_bytes());
            assert_eq!(start.initrd, contents.initrd);
        }
    }

    #[test]
    fn the_same_contents_are_the_same_bytes() {
        let card = write(&contents()).unwrap();
        assert!(card == write(&contents()).unwrap());
        assert_eq!(card.len(), SMALLEST);
        assert_eq!((&card[440..444], &card[510..512]), (&ID[..], &[0x55, 0xaa][..]));
        let mut other = contents();
        other.cmdline.push('x');
        assert!(card != write(&other).unwrap());
    }

    #[test]
    fn licences_are_on_the_card() {
        let mut contents = contents();
        let names = |contents: &Contents| {
            let files = listed(&write(contents).unwrap());
            files.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let expected = [
            "COPYING.linux",
            "LICENCE.broadcom",
            "LICENSE-APACHE",
            "LICENSE-MIT",
            "bcm2711-rpi-4-b.dtb",
            "cmdline.txt",
            "config.txt",
            "fixup4.dat",
            "kernel8.img",
            "start4.elf",
        ];
        assert_eq!(names(&contents), expected);
        contents.packages = Some(b"raspi-firmware".to_vec());
        assert!(names(&contents).contains(&"packages".to_owned()));
    }

    /// Where the kernel sets a baud rate, it is by these clocks.
    #[test]
    fn clocks_are_what_the_kernel_assumes() {
        let driver = include_str!("../../../kernel/src/console/port.rs");
        let config = include_str!("../config.txt");
        for (constant, settings) in [
            ("UART_0_CLOCK: u32 = 48_000_000;", &["init_uart_clock=48000000"][..]),
            ("MINI_UART_CLOCK: u32 = 500_000_000;", &["core_freq=500", "core_freq_min=500"]),
        ] {
            assert!(driver.contains(constant), "{constant}");
            for setting in settings {
                assert!(config.lines().any(|line| line == *setting), "{setting}");
            }
        }
    }

    /// As fsck.fat and the firmware see it, which know of the partition table no more than this.
    #[test]
    fn the_volume_says_where_it_begins() {
        let card = write(&contents()).unwrap();
        let volume = &card[FIRST_SECTOR as usize * SECTOR..];
        assert_eq!(volume[50..52], [6, 0], "the copy of the boot sector");
        assert_eq!(volume[28..32], 2048_u32.to_le_bytes());
        assert_eq!(volume[..SECTOR], volume[6 * SECTOR..7 * SECTOR]);
    }

    #[test]
    fn a_tree_on_a_card_is_read_before_it_is_booted() {
        let mut card = write(&contents()).unwrap();
        let at = card.windows(64).position(|bytes| bytes == &DTB[..64]).unwrap();
        card[at] = 0;
        assert!(matches!(read(&card), Err(Error::Tree(_))));
    }

    #[test]
    fn a_card_grows_by_powers_of_two() {
        let mut large = contents();
        large.initrd = Some(vec![7; SMALLEST]);
        let card = write(&large).unwrap();
        assert_eq!(card.len(), 2 * SMALLEST);
        assert!(listed(&card).contains(&("initramfs".to_owned(), SMALLEST as u64)));
        assert_eq!(read(&card).unwrap().initrd, large.initrd);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let refused = |change: &dyn Fn(&mut Contents)| {
            let mut contents = contents();
            change(&mut contents);
            write(&contents).unwrap_err().to_string()
        };
        assert_eq!(refused(&|contents| contents.kernel.truncate(56)), "the kernel is no arm64 Image");
        assert_eq!(refused(&|contents| contents.cmdline.push('\n')), "the boot arguments must be one line");
        let no_elf = refused(&|contents| contents.firmware[0] = b"<html>".to_vec());
        assert_eq!(no_elf, "the firmware's start4.elf is not what its name says");
        let reference =
            b"On Debian systems, /usr/share/common-licenses/GPL-2 has the GNU General Public License.";
        let no_text = refused(&|contents| contents.firmware[4] = reference.to_vec());
        assert_eq!(no_text, "the firmware's COPYING.linux is without the text of the licence");
        for size in [100, 700_000] {
            let cut = refused(&|contents| contents.kernel.truncate(size));
            assert_eq!(cut, "the kernel is less than its headers say");
        }
        for size in [51, 60, 5000, 1_299_999] {
            assert_eq!(refused(&|contents| contents.firmware[0].truncate(size)), no_elf);
        }
        let other: &[u8] = include_bytes!("../../../kernel/tests/data/virt-gic2.dtb");
        let other = refused(&|contents| contents.firmware[3] = other.to_vec());
        assert_eq!(other, "the device tree bcm2711-rpi-4-b.dtb is not that of a brcm,bcm2711");
        let cut = refused(&|contents| contents.firmware[3].truncate(DTB.len() - 1));
        let expected = format!(
            "the device tree bcm2711-rpi-4-b.dtb can't be read: truncated: {} of at least {} bytes",
            DTB.len() - 1,
            DTB.len()
        );
        assert_eq!(cut, expected);
    }

    #[test]
    fn what_is_no_card_is_refused() {
        let card = write(&contents()).unwrap();
        for bytes in [&[][..], &card[..511], &card[..SMALLEST / 2], &[0; SMALLEST]] {
            assert!(matches!(read(bytes), Err(Error::NoPartition)));
        }
        let mut other = card;
        other[446 + 4] = 0x83;
        assert!(matches!(read(&other), Err(Error::NoPartition)));
    }
}
