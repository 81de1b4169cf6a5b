//! The kernel's command line: words between blanks, `key=value` or a bare key, as Linux writes them.
//!
//! Double quotes keep blanks: `key="a b"` and `"key=a b"` both have the value `a b`. Words that are no
//! option of the kernel are kept for a warning, since boot loaders add many. What follows a word `--`
//! is not the kernel's and is left as it is.

use core::fmt;

use log::LevelFilter;
use mm::ThpPolicy;

use crate::platform::UartKind;

/// Which self-tests run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Selftest<'a> {
    /// All that are not started by name only.
    #[default]
    All,
    /// Those whose name matches this pattern of [`crate::glob`].
    Glob(&'a str),
    /// None: their names are listed.
    List,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bench {
    /// The public calls on entries of user memory.
    Ptep,
    /// How far the TLB reaches, with and without the Contiguous bit.
    Tlb,
}

/// Whose page tables are dumped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ptdump {
    /// The kernel's.
    InitMm,
    /// The firmware's.
    EfiMm,
    /// Both.
    All,
}

/// Why a command line is refused, with the word that is to blame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BootArgsError<'a> {
    /// A quote is opened in this word, and not closed.
    UnterminatedQuote(&'a str),
    /// The value of a known option is none of those that it has.
    InvalidValue {
        /// The word.
        word: &'a str,
        /// What would be valid.
        expected: &'static str,
    },
    /// A known option was given before, with another value.
    Conflict(&'a str),
}

impl fmt::Display for BootArgsError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnterminatedQuote(word) => write!(f, "a quote is not closed in `{word}`"),
            Self::InvalidValue { word, expected } => write!(f, "`{word}`: the value must be {expected}"),
            Self::Conflict(word) => write!(f, "`{word}` contradicts an earlier word"),
        }
    }
}

impl core::error::Error for BootArgsError<'_> {}

/// One line per option: its key, its field with its type and what it is if not given, the function
/// that reads its value (`None` for a bare key), and what that function expects.
macro_rules! options {
    ($($(#[$doc:meta])* $key:literal: $field:ident: $type:ty = $default:expr, $read:ident, $expected:expr;)*) => {
        /// The command line, read.
        #[derive(Clone, Debug)]
        pub struct BootArgs<'a> {
            $($(#[$doc])* pub $field: $type,)*
            /// What follows `--`, unread: empty where there is nothing.
            pub init: &'a str,
            /// How many words are no option of the kernel: see [`BootArgs::unknown`].
            pub unknown_count: usize,
            line: &'a str,
        }

        const KEYS: &[&str] = &[$($key),*];

        impl<'a> BootArgs<'a> {
            /// Reads the command line.
            ///
            /// # Errors
            /// Where a quote is not closed, or a known option has a value that can't be read or
            /// that contradicts its earlier value.
            pub fn parse(line: &'a str) -> Result<Self, BootArgsError<'a>> {
                $(let mut $field: Option<$type> = None;)*
                let mut unknown_count = 0;
                let mut words = Words::new(line);
                while let Some(word) = words.next().transpose()? {
                    match word.key {
                        $($key => {
                            let expected = $expected;
                            let value = $read(word.value)
                                .ok_or(BootArgsError::InvalidValue { word: word.whole, expected })?;
                            if $field.is_some_and(|earlier| earlier != value) {
                                return Err(BootArgsError::Conflict(word.whole));
                            }
                            $field = Some(value);
                        })*
                        _ if serial(&word).is_some() => {}
                        _ => unknown_count += 1,
                    }
                }
                Ok(Self {
                    $($field: $field.unwrap_or($default),)*
                    init: words.init,
                    unknown_count,
                    line,
                })
            }
        }
    };
}

options! {
    /// `bench=`: a benchmark to be run in place of the self-tests, of whose parts `selftest=` selects.
    "bench": bench: Option<Bench> = None, read_bench, "`ptep` or `tlb`";
    /// `init=`: the program that is run in place of the self-tests, and whose status ends the machine.
    "init": init_path: Option<&'a str> = None, read_path, "a path that begins with `/`";
    /// `loglevel=`: the least severe messages that are printed.
    "loglevel": log_level: LevelFilter = LevelFilter::Info, read_level, "off, error, warn, info, debug, trace or 0 to 8";
    /// `ptdump=`: page tables to be printed before anything runs.
    "ptdump": ptdump: Option<Ptdump> = None, read_ptdump, "`init_mm`, `efi_mm` or `all`";
    /// `selftest=`: `list`, or a pattern. The bare key is the same as none.
    "selftest": selftest: Selftest<'a> = Selftest::All, read_selftest, "`list` or a pattern";
    /// `thp=`: whether memory of processes comes in blocks.
    "thp": thp: ThpPolicy = ThpPolicy::Always, read_thp, "`always` or `never`";
}

/// The UART that the line asks for as the console, in Linux's names: `console=ttyAMA0` is a PL011, `ttyS0` and `ttyS1`
/// are the mini-UART, and what follows a comma is not read. The last such word counts. Consoles of other names are no
/// option of the kernel, and unlike all others these words may contradict each other: a line for Linux names several.
///
/// Not a field of [`BootArgs`], since it is needed before there is a console to say what is wrong with the rest.
pub fn console(line: &str) -> Option<UartKind> {
    Words::new(line).filter_map(|word| serial(&word.ok()?)).last()
}

/// The UART that the word names, if it is `console=` with a name that is known.
fn serial(word: &Word<'_>) -> Option<UartKind> {
    let value = word.value.filter(|_| word.key == "console")?;
    match value.split_once(',').map_or(value, |(name, _options)| name) {
        "ttyAMA0" => Some(UartKind::Pl011),
        "ttyS0" | "ttyS1" => Some(UartKind::MiniUart),
        _ => None,
    }
}

/// What follows the first word of a command line.
pub fn after_first_word(line: &str) -> &str {
    let mut words = Words::new(line);
    // A quote that is not closed takes the rest of the line.
    let _ = words.next();
    words.rest.trim_ascii()
}

impl<'a> BootArgs<'a> {
    /// The words that are no option of the kernel, whole, in order.
    pub fn unknown(&self) -> impl Iterator<Item = &'a str> {
        // Parsing has shown that there is no error on this line.
        let words = Words::new(self.line).filter_map(Result::ok);
        let unknown = |word: &Word<'_>| !KEYS.contains(&word.key) && serial(word).is_none();
        words.filter(unknown).map(|word| word.whole)
    }

    /// The words for init, as Linux hands them on: those that the kernel does not know, then what follows `--`, without
    /// their quotes. `take` is told of each whether it is a setting (`key=value`), which belongs into the environment.
    /// Settings with a `.` in their key are meant for a part of the kernel, and left out.
    pub fn init_words(&self, mut take: impl FnMut(&'a str, bool)) {
        let words = Words::new(self.line).filter_map(Result::ok);
        for word in words.filter(|word| !KEYS.contains(&word.key) && !word.key.contains('.')) {
            take(unquote(word.whole), word.value.is_some());
        }
        let words = Words::new(self.init).filter_map(Result::ok);
        words.for_each(|word| take(unquote(word.whole), false));
    }
}

/// A name of the `log` crate, or Linux's console level: messages *below* that number are printed, and
/// errors have number 3, warnings 4, information 6 and debug messages 7.
fn read_level(value: Option<&str>) -> Option<LevelFilter> {
    Some(match value? {
        "off" | "0" | "1" | "2" | "3" => LevelFilter::Off,
        "error" | "4" => LevelFilter::Error,
        "warn" | "5" | "6" => LevelFilter::Warn,
        "info" | "7" => LevelFilter::Info,
        "debug" | "8" => LevelFilter::Debug,
        "trace" => LevelFilter::Trace,
        _ => return None,
    })
}

fn read_bench(value: Option<&str>) -> Option<Option<Bench>> {
    match value? {
        "ptep" => Some(Some(Bench::Ptep)),
        "tlb" => Some(Some(Bench::Tlb)),
        _ => None,
    }
}

fn read_ptdump(value: Option<&str>) -> Option<Option<Ptdump>> {
    match value? {
        "init_mm" => Some(Some(Ptdump::InitMm)),
        "efi_mm" => Some(Some(Ptdump::EfiMm)),
        "all" => Some(Some(Ptdump::All)),
        _ => None,
    }
}

fn read_path(value: Option<&str>) -> Option<Option<&str>> {
    value.filter(|path| path.starts_with('/')).map(Some)
}

fn read_thp(value: Option<&str>) -> Option<ThpPolicy> {
    match value? {
        "always" => Some(ThpPolicy::Always),
        "never" => Some(ThpPolicy::Never),
        _ => None,
    }
}

fn read_selftest(value: Option<&str>) -> Option<Selftest<'_>> {
    match value {
        None => Some(Selftest::All),
        Some("") => None,
        Some("list") => Some(Selftest::List),
        Some(pattern) => Some(Selftest::Glob(pattern)),
    }
}

/// A word of the command line.
#[derive(Clone, Copy)]
struct Word<'a> {
    /// As it was written.
    whole: &'a str,
    key: &'a str,
    /// What follows the first `=`.
    value: Option<&'a str>,
}

impl<'a> Word<'a> {
    fn new(whole: &'a str) -> Self {
        let bare = unquote(whole);
        match bare.split_once('=') {
            Some((key, value)) => Self { whole, key, value: Some(unquote(value)) },
            None => Self { whole, key: bare, value: None },
        }
    }
}

/// The text without a quote that it begins with, and without one at its end then. As in Linux, quotes
/// elsewhere only keep blanks and stay in the text.
fn unquote(text: &str) -> &str {
    match text.strip_prefix('"') {
        Some(inner) => inner.strip_suffix('"').unwrap_or(inner),
        None => text,
    }
}

/// The words up to `--`.
struct Words<'a> {
    rest: &'a str,
    /// What follows `--`, once that has been reached.
    init: &'a str,
}

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Self {
        Self { rest: line, init: "" }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Result<Word<'a>, BootArgsError<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.rest.trim_ascii();
        let mut quoted = false;
        let end = line.bytes().position(|byte| {
            quoted ^= byte == b'"';
            !quoted && byte.is_ascii_whitespace()
        });
        // Both blanks and quotes are single bytes, so this splits between characters.
        let (whole, rest) = line.split_at(end.unwrap_or(line.len()));
        self.rest = rest;
        if whole == "--" {
            self.init = core::mem::take(&mut self.rest).trim_ascii();
            return None;
        }
        if quoted {
            self.rest = "";
            return Some(Err(BootArgsError::UnterminatedQuote(whole)));
        }
        (!whole.is_empty()).then(|| Ok(Word::new(whole)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> BootArgs<'_> {
        BootArgs::parse(line).unwrap()
    }

    #[test]
    fn without_words_everything_has_its_default() {
        for line in ["", " ", "\t \n"] {
            let args = parse(line);
            assert_eq!((args.log_level, args.selftest), (LevelFilter::Info, Selftest::All));
            assert_eq!((args.unknown_count, args.init), (0, ""));
        }
    }

    #[test]
    fn levels_have_names_and_numbers() {
        for (value, level) in [
            ("off", LevelFilter::Off),
            ("error", LevelFilter::Error),
            ("warn", LevelFilter::Warn),
            ("info", LevelFilter::Info),
            ("debug", LevelFilter::Debug),
            ("trace", LevelFilter::Trace),
            ("0", LevelFilter::Off),
            ("3", LevelFilter::Off),
            ("4", LevelFilter::Error),
            ("5", LevelFilter::Warn),
            ("6", LevelFilter::Warn),
            ("7", LevelFilter::Info),
            ("8", LevelFilter::Debug),
        ] {
            assert_eq!(parse(&format!("loglevel={value}")).log_level, level, "{value}");
        }
        for word in ["loglevel", "loglevel=", "loglevel=loud", "loglevel=9", "loglevel=-1", "loglevel=07"] {
            let error = BootArgs::parse(word).unwrap_err();
            assert!(matches!(error, BootArgsError::InvalidValue { word: culprit, .. } if culprit == word));
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn selftests_are_chosen_or_listed() {
        for (line, selftest) in [
            ("selftest", Selftest::All),
            ("selftest=list", Selftest::List),
            ("selftest=mm.*", Selftest::Glob("mm.*")),
            ("selftest=*", Selftest::Glob("*")),
            (r#"selftest="a b""#, Selftest::Glob("a b")),
            (r#""selftest=a b""#, Selftest::Glob("a b")),
            ("selftest=a=b", Selftest::Glob("a=b")),
        ] {
            assert_eq!(parse(line).selftest, selftest, "{line}");
        }
        for word in ["selftest=", r#"selftest="""#] {
            assert!(matches!(BootArgs::parse(word), Err(BootArgsError::InvalidValue { .. })), "{word}");
        }
    }

    #[test]
    fn benchmarks_have_names() {
        assert_eq!((parse("").bench, parse("bench=ptep").bench), (None, Some(Bench::Ptep)));
        assert_eq!(parse("bench=tlb").bench, Some(Bench::Tlb));
        for word in ["bench", "bench=", "bench=all", "bench=Ptep"] {
            let error = BootArgs::parse(word).unwrap_err();
            assert_eq!(error, BootArgsError::InvalidValue { word, expected: "`ptep` or `tlb`" });
        }
    }

    #[test]
    fn page_tables_are_dumped_by_name() {
        for (line, ptdump) in [
            ("", None),
            ("ptdump=init_mm", Some(Ptdump::InitMm)),
            ("ptdump=efi_mm", Some(Ptdump::EfiMm)),
            ("ptdump=all", Some(Ptdump::All)),
        ] {
            assert_eq!(parse(line).ptdump, ptdump, "{line}");
        }
        for word in ["ptdump", "ptdump=", "ptdump=init", "ptdump=init_mm,efi_mm", "ptdump=All"] {
            let error = BootArgs::parse(word).unwrap_err();
            let expected = "`init_mm`, `efi_mm` or `all`";
            assert_eq!(error, BootArgsError::InvalidValue { word, expected });
        }
        let twice = BootArgs::parse("ptdump=init_mm ptdump=all").unwrap_err();
        assert_eq!(twice, BootArgsError::Conflict("ptdump=all"));
    }

    #[test]
    fn the_last_serial_console_counts() {
        for (line, kind) in [
            ("", None),
            ("console=ttyAMA0", Some(UartKind::Pl011)),
            ("console=ttyAMA0,115200n8", Some(UartKind::Pl011)),
            ("console=ttyS0", Some(UartKind::MiniUart)),
            ("console=ttyS1,115200", Some(UartKind::MiniUart)),
            ("console=ttyS0 console=ttyAMA0 console=tty1", Some(UartKind::Pl011)),
            ("console=ttyAMA0 console=ttyS0", Some(UartKind::MiniUart)),
            ("\"console=ttyAMA0,115200\"", Some(UartKind::Pl011)),
            ("console=ttyAMA1 console=tty0 console console= earlycon=ttyAMA0", None),
            ("-- console=ttyAMA0", None),
            // What is wrong with the rest is said on it.
            ("console=ttyAMA0 loglevel=loud \"a", Some(UartKind::Pl011)),
        ] {
            assert_eq!(console(line), kind, "{line}");
        }
        let args = parse("console=ttyS0 console=tty1 console=ttyAMA0,9600 console");
        assert_eq!(args.unknown().collect::<Vec<_>>(), ["console=tty1", "console"]);
        assert_eq!(args.unknown_count, 2);
    }

    /// What the Raspberry Pi's firmware and Debian's boot loaders add.
    #[test]
    fn unknown_words_are_kept_in_order() {
        let args = parse(
            "coherent_pool=1M 8250.nr_uarts=1  loglevel=warn\tquiet dyndbg=\"file a.c +p; x\" loglevels=1 -- --x \"y",
        );
        assert_eq!(args.log_level, LevelFilter::Warn);
        let unknown =
            ["coherent_pool=1M", "8250.nr_uarts=1", "quiet", "dyndbg=\"file a.c +p; x\"", "loglevels=1"];
        assert_eq!(args.unknown().collect::<Vec<_>>(), unknown);
        assert_eq!(args.unknown_count, unknown.len());
        assert_eq!(args.init, "--x \"y");
    }

    #[test]
    fn what_follows_two_dashes_is_left_alone() {
        let args = parse("selftest=list -- selftest=mm.* loglevel=loud");
        assert_eq!((args.selftest, args.init), (Selftest::List, "selftest=mm.* loglevel=loud"));
        assert_eq!(parse("--").init, "");
        // Only as a word of its own.
        assert_eq!((parse("--x a").init, parse("\"--\" a").init), ("", ""));
    }

    #[test]
    fn the_first_word_can_be_left_out() {
        for (line, rest) in [
            ("", ""),
            ("a.efi", ""),
            (r" fs0:\a.efi  b=1 c ", "b=1 c"),
            (r#""fs0:\a b.efi" "c d" e"#, r#""c d" e"#),
            (r#""a b"#, ""),
        ] {
            assert_eq!(after_first_word(line), rest, "{line}");
        }
    }

    #[test]
    fn init_gets_what_the_kernel_does_not_know() {
        let words = |line| {
            let (mut argv, mut envp) = (Vec::new(), Vec::new());
            parse(line)
                .init_words(|word, is_setting| if is_setting { envp.push(word) } else { argv.push(word) });
            (argv, envp)
        };
        let line = r#"init=/bin/a x loglevel=info A=1 usbcore.quirks=2 "two words" B="3 4" -- thp=never "y z" -- last"#;
        assert_eq!(parse(line).init_path, Some("/bin/a"));
        let argv = vec!["x", "two words", "thp=never", "y z"];
        assert_eq!(words(line), (argv, vec!["A=1", r#"B="3 4""#]));
        assert_eq!(words("init=/a"), (vec![], vec![]));
        for word in ["init", "init=", "init=bin/a"] {
            assert!(matches!(BootArgs::parse(word), Err(BootArgsError::InvalidValue { .. })), "{word}");
        }
    }

    #[test]
    fn blocks_for_processes_may_be_switched_off() {
        assert_eq!((parse("").thp, parse("thp=never").thp), (ThpPolicy::Always, ThpPolicy::Never));
        assert!(matches!(BootArgs::parse("thp=madvise"), Err(BootArgsError::InvalidValue { .. })));
    }

    #[test]
    fn open_quotes_are_refused() {
        for (line, word) in [(r#"a "b c"#, r#""b c"#), (r#"""#, r#"""#), (r#"a="b" c"d -- e"#, r#"c"d -- e"#)]
        {
            assert_eq!(BootArgs::parse(line).unwrap_err(), BootArgsError::UnterminatedQuote(word));
        }
    }

    #[test]
    fn repetition_is_fine_and_contradiction_is_not() {
        assert_eq!(parse("loglevel=info selftest=list loglevel=7").log_level, LevelFilter::Info);
        let error = BootArgs::parse("selftest=mm.* selftest=list").unwrap_err();
        assert_eq!(error, BootArgsError::Conflict("selftest=list"));
    }

    proptest! {
        /// Any text is read without a panic, and no word is lost or counted twice.
        #[test]
        fn every_word_is_known_or_unknown(line in r#"(loglevel=info|selftest=list|console=ttyS0|--|[-a-z0-9="é \t]){0,30}"#) {
            if let Ok(args) = BootArgs::parse(&line) {
                prop_assert_eq!(args.unknown().count(), args.unknown_count);
                let words = Words::new(&line).count();
                let known = |word: &Word<'_>| KEYS.contains(&word.key) || serial(word).is_some();
                let known = Words::new(&line).flatten().filter(known).count();
                prop_assert_eq!(known + args.unknown_count, words);
                prop_assert!(line.contains(args.init));
            }
        }

        /// A line without quotes splits as the standard library splits it.
        #[test]
        fn words_are_between_blanks(line in "[a-z0-9= \t\n]{0,60}") {
            let words: Vec<_> = Words::new(&line).flatten().map(|word| word.whole).collect();
            prop_assert_eq!(words, line.split_ascii_whitespace().collect::<Vec<_>>());
        }
    }
}
