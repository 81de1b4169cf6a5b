use proptest::prelude::*;

use super::*;

/// What a terminal shows after `input`, and the lines that come of it. What is left is not complete.
fn typed(input: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (mut line, mut shown, mut lines) = (Line::new(), Vec::new(), Vec::new());
    for &byte in input {
        line.input(byte, |echo| shown.extend_from_slice(echo));
        if let Some(text) = line.complete() {
            lines.push(text.to_vec());
            let nr = text.len();
            line.consume(nr);
        }
    }
    (shown, lines)
}

fn line(input: &[u8]) -> Vec<u8> {
    let (_, lines) = typed(input);
    assert_eq!(lines.len(), 1, "{input:?}");
    lines[0].clone()
}

#[test]
fn lines_end_by_return_or_newline() {
    let (shown, lines) = typed(b"one\rtwo\nrest");
    assert_eq!(lines, [b"one\n".to_vec(), b"two\n".to_vec()]);
    assert_eq!(shown, b"one\ntwo\nrest");
}

#[test]
fn what_is_erased_is_gone_from_line_and_terminal() {
    assert_eq!(typed(b"ab\x7f\x08\x08c\r"), (b"ab\x08 \x08\x08 \x08c\n".to_vec(), vec![b"c\n".to_vec()]));
    assert_eq!(line(b"wrong\x15right\r"), b"right\n");
    // Nothing before the line is taken back.
    assert_eq!(typed(b"a\r\x7f\x15b\r").1, [b"a\n".to_vec(), b"b\n".to_vec()]);
}

#[test]
fn a_character_is_erased_with_all_of_its_bytes() {
    let (shown, lines) = typed("aé€\x7f\x7f\r".as_bytes());
    assert_eq!(lines, [b"a\n".to_vec()]);
    assert_eq!(shown, "aé€\x08 \x08\x08 \x08\n".as_bytes());
    // Bytes that begin no character go together, and not the line before them.
    assert_eq!(line(b"\xa9\xa9\x7fb\r"), b"b\n");
}

#[test]
fn control_characters_are_shown_by_their_letter() {
    assert_eq!(typed(b"\x03\t\r"), (b"^C^I\n".to_vec(), vec![b"\x03\t\n".to_vec()]));
    assert_eq!(typed(b"\x03\x7f").0, b"^C\x08 \x08\x08 \x08");
}

#[test]
fn the_end_of_the_input_ends_a_line_or_is_empty() {
    let (shown, lines) = typed(b"half\x04\x04whole\r\x04");
    assert_eq!(lines, [b"half".to_vec(), Vec::new(), b"whole\n".to_vec(), Vec::new()]);
    assert_eq!(shown, b"halfwhole\n");
}

#[test]
fn a_line_is_read_in_parts() {
    let mut line = Line::new();
    assert_eq!(line.complete(), None);
    b"abc\r".iter().for_each(|&byte| line.input(byte, |_| ()));
    let before = line.position();
    line.consume(1);
    assert_ne!(line.position(), before);
    assert_eq!(line.complete(), Some(b"bc\n".as_slice()));
    line.consume(3);
    assert_eq!(line.complete(), None);
}

#[test]
fn the_end_of_the_input_is_read_once() {
    let mut line = Line::new();
    line.input(END_OF_FILE, |_| ());
    let before = line.position();
    assert_eq!(line.complete(), Some(b"".as_slice()));
    line.consume(0);
    assert_ne!(line.position(), before);
    assert_eq!(line.complete(), None);
}

#[test]
fn a_line_that_is_too_long_keeps_its_beginning_and_its_end() {
    let mut input = vec![b'x'; MAX_LINE + 10];
    input.push(b'\r');
    let (shown, lines) = typed(&input);
    assert_eq!((lines[0].len(), lines[0][MAX_LINE - 1]), (MAX_LINE, b'\n'));
    assert_eq!(shown.iter().filter(|&&byte| byte == BELL).count(), 11);
}

proptest! {
    /// What is typed, taken back with as many deletes, and typed again is as if it was typed once.
    #[test]
    fn what_is_erased_was_never_there(text in "[a-zé€\t]{0,40}") {
        let again: String = text.chars().chain(text.chars().map(|_| '\x7f')).chain(text.chars()).collect();
        prop_assert_eq!(line(format!("{again}\r").as_bytes()), format!("{text}\n").into_bytes());
    }

    /// Nothing that is sent is a panic, and lines have one end.
    #[test]
    fn any_bytes_make_lines(input in proptest::collection::vec(any::<u8>(), 0..200)) {
        for line in typed(&input).1 {
            prop_assert!(!line[..line.len().saturating_sub(1)].contains(&b'\n'));
        }
    }
}
