//! Programs at EL0, each as the first process, with all that it starts: `tests/user`.

use alloc::vec::Vec;

use mm::Errno;

use super::harness::{Context, TestResult, Unmet, check};
use crate::console::println;
use crate::cpu;
use crate::process::trap::Faults;
use crate::process::{Status, init};

/// Runs a program, which must exit with 0.
fn runs(name: &str, arguments: &[&str]) -> TestResult {
    let path = alloc::format!("/bin/{name}");
    let argv: Vec<_> = [path.as_str()].iter().chain(arguments).map(|word| word.as_bytes().to_vec()).collect();
    let status = match init::run(path.as_bytes(), &argv, &[b"PLEAT_TEST=1".to_vec()]) {
        Err(Errno::ENOENT) if init::has_initrd() => {
            return Err(Unmet::Skipped("the initial RAM disk has no test programs"));
        }
        result => result,
    };
    check!(status == Ok(Status::Exited(0)), "{path}: {status:?}");
    Ok(())
}

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident: $program:literal $(, $argument:literal)*;)*) => {
        $($(#[$doc])* pub(crate) fn $name(_: &Context<'_>) -> TestResult {
            runs($program, &[$($argument),*])
        })*
    };
}

programs! {
    hello: "hello";
    hello_static: "hello-static";
    arguments: "arguments", "one", "two words", "";
    memory: "memory";
    processes: "processes";
    exec: "exec";
    files: "files";
    errors: "errors";
    time: "time";
    float: "float";
    faults: "faults";
    crowd: "crowd";
    missing: "missing";
    folds: "folds", "here";
}

/// Two CPUs at EL0 in one address space: one uses a block, the other unfolds, folds and protects it.
pub(crate) fn a_block_is_used_while_another_cpu_changes_it(_: &Context<'_>) -> TestResult {
    if cpu::count() < 2 {
        return Err(Unmet::Skipped("there is one CPU"));
    }
    let before = Faults::now();
    runs("blocks", &[])?;
    let waited = Faults::now().spurious - before.spurious;
    println!("# {waited} faults waited for the lock");
    check!(waited > 0, "no access met a conversion: nothing was shown");
    Ok(())
}
