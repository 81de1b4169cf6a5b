//! What must hold of a plan: for the tests of this module, and the fuzz target, which includes this file.

use super::{LOWEST, PAGE, Program, Segment, TASK_SIZE};

/// What must hold of a plan, whatever the file.
///
/// # Panics
/// Where something does not.
pub(crate) fn is_sound(program: &Program, file: &[u8]) {
    let mut above = LOWEST;
    for segment in &program.segments {
        let pages = segment.pages();
        assert!(above <= pages.start && pages.start < pages.end && pages.end <= TASK_SIZE, "{program:?}");
        above = pages.end;
        for address in [pages.start, pages.end, segment.offset] {
            assert!(address.is_multiple_of(PAGE), "{program:?}");
        }
        assert!(!(segment.permissions.write && segment.permissions.execute), "{program:?}");
        if !segment.file.is_empty() {
            assert_eq!(segment.file.end, segment.anonymous.start);
            assert!(segment.offset < file.len() as u64);
            // Pages beyond the end of the file are never mapped.
            let mapped = segment.offset + (segment.file.end - segment.file.start);
            assert!(mapped <= (file.len() as u64).next_multiple_of(PAGE), "{program:?}");
        }
        assert!(segment.zero.is_empty() || segment.permissions.write);
        assert!(
            segment.zero.is_empty()
                || segment.zero.end == segment.file.end && segment.zero.end - segment.zero.start < PAGE
        );
    }
    assert_eq!(program.end, above);
    let holds = |segment: &Segment| segment.permissions.execute && segment.pages().contains(&program.entry);
    assert!(program.segments.iter().any(holds), "{program:?}");
}
