//! A machine for tests of entries, shared by the files beside it.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test file uses a part")]

mod machine;

pub use machine::*;
