//! (being written)
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

pub mod frames;
