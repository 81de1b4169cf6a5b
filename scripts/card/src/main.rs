//! The command behind `scripts/sdcard` and `scripts/run --sdcard`.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use pleat_card::{Contents, Error};

const USAGE: &str = "usage: pleat-card write OUT FIRMWARE-DIRECTORY IMAGE CMDLINE [INITRD]
       pleat-card read CARD DIRECTORY";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let command = arguments.first().and_then(|command| command.to_str());
    let result = match (command, arguments.get(1..).unwrap_or_default()) {
        (Some("write"), [out, firmware, image, cmdline, initrd @ ..]) if initrd.len() <= 1 => {
            write(out.as_ref(), firmware.as_ref(), image.as_ref(), cmdline, initrd.first().map(Path::new))
        }
        (Some("read"), [card, directory]) => read(card.as_ref(), directory.as_ref()),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Writes a card to `out`, which appears whole or not at all.
fn write(
    out: &Path,
    firmware: &Path,
    image: &Path,
    cmdline: &OsStr,
    initrd: Option<&Path>,
) -> Result<(), String> {
    let contents = Contents {
        firmware: pleat_card::FIRMWARE
            .iter()
            .map(|&name| load(&firmware.join(name)))
            .collect::<Result<_, _>>()?,
        packages: load_if_there(&firmware.join(pleat_card::PACKAGES))?,
        kernel: load(image)?,
        cmdline: cmdline.to_str().ok_or("the boot arguments are not UTF-8")?.to_owned(),
        initrd: initrd.map(load).transpose()?,
    };
    let card = pleat_card::write(&contents).map_err(|error| error.to_string())?;
    // Not readable by its owner only, as temporary files are: the umask decides.
    let mut unfinished = tempfile::Builder::new();
    unfinished.permissions(Permissions::from_mode(0o666));
    let directory = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = unfinished.tempfile_in(directory).and_then(|mut file| {
        file.write_all(&card)?;
        file.persist(out).map_err(io::Error::from)
    });
    written.map(drop).map_err(|error| format!("{}: {error}", out.display()))
}

/// Writes what the firmware would start from `card` into `directory`: the files `kernel`, `dtb`, `cmdline`, and `initrd`
/// where there is one. One of another card is removed.
fn read(card: &Path, directory: &Path) -> Result<(), String> {
    let of_card = |error: &dyn Display| format!("{}: {error}", card.display());
    // Of a device, or of what has no end, not all is read into memory.
    let metadata = fs::metadata(card).map_err(|error| of_card(&error))?;
    if !metadata.is_file() {
        return Err(of_card(&"it is no file"));
    }
    if metadata.len() > pleat_card::LARGEST as u64 {
        return Err(of_card(&Error::NoPartition));
    }
    let start = pleat_card::read(&load(card)?).map_err(|error| of_card(&error))?;
    fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let files = [("kernel", &start.kernel), ("dtb", &start.tree), ("cmdline", &start.cmdline)];
    for (name, bytes) in files.into_iter().chain(start.initrd.as_ref().map(|initrd| ("initrd", initrd))) {
        let path = directory.join(name);
        fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let initrd = directory.join("initrd");
    if start.initrd.is_none() && initrd.exists() {
        fs::remove_file(&initrd).map_err(|error| format!("{}: {error}", initrd.display()))?;
    }
    Ok(())
}

fn load(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if bytes.is_empty() { Err(format!("{}: {}", path.display(), Error::Empty)) } else { Ok(bytes) }
}

fn load_if_there(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        _ => load(path).map(Some),
    }
}
