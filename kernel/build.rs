//! Hands the linker script to the linker of the kernel's binary, and names the archive that becomes a part of it.

fn main() {
    initramfs();
    println!("cargo::rerun-if-changed=image.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo::rustc-link-arg-bins=-T{directory}/image.ld");
        // No program headers with alignment of their own, no build id, no hash tables to carry.
        println!("cargo::rustc-link-arg-bins=--no-dynamic-linker");
        println!("cargo::rustc-link-arg-bins=-znorelro");
        println!("cargo::rustc-link-arg-bins=--build-id=none");
    }
}

/// The archive that PLEAT_INITRAMFS names, for kernels with the self-tests; else an empty one, which is no bytes at all.
fn initramfs() {
    println!("cargo::rerun-if-env-changed=PLEAT_INITRAMFS");
    let given = std::env::var("PLEAT_INITRAMFS")
        .ok()
        .filter(|_| std::env::var_os("CARGO_FEATURE_SELFTEST").is_some());
    let archive = given.unwrap_or_else(|| {
        let empty = std::env::var("OUT_DIR").expect("cargo sets it") + "/empty.cpio";
        std::fs::write(&empty, []).expect("cargo's own directory can be written");
        empty
    });
    println!("cargo::rerun-if-changed={archive}");
    println!("cargo::rustc-env=PLEAT_INITRAMFS={archive}");
}
