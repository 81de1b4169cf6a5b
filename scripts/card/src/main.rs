//! The command behind `scripts/sdcard` and `scripts/run --sdcard`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use pleat_card::{Contents, Error};

const USAGE: &str = "usage: pleat-card write OUT FIRMWARE-DIRECTORY IMAGE CMDLINE [INITRD]
       pleat-card read CARD DIRECTORY";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match *arguments {
        ["write", out, firmware, image, cmdline] => write(out, firmware, image, cmdline, None),
        ["write", out, firmware, image, cmdline, initrd] => {
            write(out, firmware, image, cmdline, Some(initrd))
        }
        ["read", card, directory] => read(card, Path::new(directory)),
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
fn write(out: &str, firmware: &str, image: &str, cmdline: &str, initrd: Option<&str>) -> Result<(), String> {
    let contents = Contents {
        firmware: pleat_card::FIRMWARE
            .iter()
            .map(|&name| load(&Path::new(firmware).join(name)))
            .collect::<Result<_, _>>()?,
        packages: load_if_there(&Path::new(firmware).join(pleat_card::PACKAGES))?,
        kernel: load(Path::new(image))?,
        cmdline: cmdline.to_owned(),
        initrd: initrd.map(|path| load(Path::new(path))).transpose()?,
    };
    let card = pleat_card::write(&contents).map_err(|error| error.to_string())?;
    let unfinished = PathBuf::from(format!("{out}.new"));
    let written = fs::write(&unfinished, card).and_then(|()| fs::rename(&unfinished, out));
    written.map_err(|error| {
        // It may not even be there.
        let _ = fs::remove_file(&unfinished);
        format!("{out}: {error}")
    })
}

/// Writes what the firmware would start from `card` into `directory`: the files `kernel`, `dtb`, `cmdline`, and `initrd`
/// where there is one. One of another card is removed.
fn read(card: &str, directory: &Path) -> Result<(), String> {
    let start = pleat_card::read(&load(Path::new(card))?).map_err(|error| format!("{card}: {error}"))?;
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
