//! Tables as firmware makes them, and what the parsers must say of any bytes. Also the fuzzer's.
#![allow(dead_code, unreachable_pub, reason = "a module of several test programs, each of which uses a part")]

pub mod oracle;
pub mod tables;
