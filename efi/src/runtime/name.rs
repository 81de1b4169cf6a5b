//! Names of variables.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

/// The most code units of a name, with the NUL at its end. Firmware's own limit is mostly its largest variable, but names
/// are short.
const MAX_UNITS: usize = 512;

/// The name of a variable: UCS-2 that ends with a NUL.
#[derive(Clone, Copy)]
pub struct VariableName([u16; MAX_UNITS]);

impl VariableName {
    /// The empty name, which no variable has: what comes after it is the first.
    pub const FIRST: Self = Self([0; MAX_UNITS]);

    /// `name`; `None` where it has a NUL in it, or is too long.
    pub fn new(name: &str) -> Option<Self> {
        let mut units = [0; MAX_UNITS];
        // The last unit stays NUL.
        let mut rest = units.split_last_mut()?.1.iter_mut();
        for unit in name.encode_utf16() {
            if unit == 0 {
                return None;
            }
            *rest.next()? = unit;
        }
        Some(Self(units))
    }

    /// The units, all of them, for firmware to read or write.
    pub(crate) fn units_mut(&mut self) -> &mut [u16; MAX_UNITS] {
        &mut self.0
    }

    pub(crate) fn has_end(&self) -> bool {
        self.0.contains(&0)
    }

    /// The units before the NUL.
    fn units(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied().take_while(|&unit| unit != 0)
    }
}

impl PartialEq for VariableName {
    /// What is after the NUL does not count.
    fn eq(&self, other: &Self) -> bool {
        self.units().eq(other.units())
    }
}

impl Eq for VariableName {}

/// As text; a unit that is none is U+FFFD.
impl fmt::Display for VariableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        char::decode_utf16(self.units())
            .try_for_each(|c| f.write_char(c.unwrap_or(char::REPLACEMENT_CHARACTER)))
    }
}

impl fmt::Debug for VariableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_with_nul() {
        let mut name = VariableName::new("BootOrder").unwrap();
        assert_eq!(name.to_string(), "BootOrder");
        assert_eq!(name.units_mut()[..10], [66, 111, 111, 116, 79, 114, 100, 101, 114, 0]);
        assert_eq!(VariableName::new(""), Some(VariableName::FIRST));
    }

    #[test]
    fn the_longest_name_leaves_room_for_the_nul() {
        let name = VariableName::new(&"x".repeat(MAX_UNITS - 1)).unwrap();
        assert!(name.has_end());
        assert_eq!(VariableName::new(&"x".repeat(MAX_UNITS)), None);
        assert_eq!(VariableName::new("a\0b"), None);
    }

    #[test]
    fn what_is_after_the_nul_does_not_count() {
        let (mut one, other) = (VariableName::new("a").unwrap(), VariableName::new("a").unwrap());
        one.units_mut()[2] = 7;
        assert_eq!(one, other);
        one.units_mut()[1] = 0xd800;
        assert_eq!(one.to_string(), "a\u{fffd}\u{7}");
        one.units_mut().fill(1);
        assert!(!one.has_end());
    }
}
