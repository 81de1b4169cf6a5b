//! One program is not position-independent: what is loaded at the addresses in the file is tested too.

fn main() {
    println!("cargo::rustc-link-arg-bins=--build-id=none");
    println!("cargo::rustc-link-arg-bin=hello-static=-no-pie");
}
