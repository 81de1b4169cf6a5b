//! What the refills of a TLB say of the Contiguous bit: the verdict of `bench=tlb`.

use core::fmt;

/// Whether entries with the Contiguous bit reach further than without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// They do: somewhere at most half as many loads miss.
    Honoured,
    /// Somewhere fewer loads miss, but nowhere half as many: nothing is known.
    Unclear,
    /// They don't: wherever every second load misses without it, nearly as many do with it.
    NoSign,
    /// Nowhere did every second load miss, with which there is something to compare.
    NoMisses,
}

impl Verdict {
    /// The verdict on refills for each load, in hundredths, without the bit and with it, for each amount of memory.
    pub fn of(refills: &[(u64, u64)]) -> Self {
        let missing = || refills.iter().filter(|(off, _)| *off >= 50);
        if missing().next().is_none() {
            Self::NoMisses
        } else if missing().any(|(off, on)| on * 2 <= *off) {
            Self::Honoured
        } else if missing().any(|(off, on)| on * 10 < *off * 9) {
            Self::Unclear
        } else {
            Self::NoSign
        }
    }
}

/// One line.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Honoured => "this core honours the Contiguous bit: with it, at most half as many refills",
            Self::Unclear => {
                "no verdict on the Contiguous bit: with it there are fewer refills, but more than half as many"
            }
            Self::NoSign => {
                "no sign that this core honours the Contiguous bit: about as many refills with it as without"
            }
            Self::NoMisses => "no verdict on the Contiguous bit: too few refills without it",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{self, Honoured, NoMisses, NoSign, Unclear};

    #[test]
    fn fewer_refills_are_not_as_many() {
        for (refills, verdict) in [
            (&[][..], NoMisses),
            (&[(0, 0), (49, 0)], NoMisses),
            // 32 entries, and 16 times as many.
            (&[(0, 0), (2, 0), (100, 0), (100, 0), (100, 100)], Honoured),
            (&[(50, 25)], Honoured),
            (&[(100, 51)], Unclear),
            (&[(100, 100), (100, 89)], Unclear),
            (&[(100, 90), (98, 100), (40, 0)], NoSign),
            (&[(100, 100), (100, 51), (100, 50)], Honoured),
        ] {
            assert_eq!(Verdict::of(refills), verdict, "{refills:?}");
        }
    }
}
