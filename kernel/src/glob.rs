//! Matches names against patterns with `*` and `?`.

/// Whether all of `text` matches `pattern`: `*` stands for any characters or none, `?` for exactly
/// one, every other character for itself. There is no escape.
///
/// Needs no memory and at most `pattern.len() * text.len()` steps: where a character does not match,
/// only the last `*` can take more, since any earlier one could only leave less of the text.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    // What follows the last `*`, and the text from where that was last tried.
    let mut last_star = None;
    loop {
        let rest = text.clone();
        match (pattern.next(), text.next()) {
            (Some('*'), _) => {
                text = rest;
                last_star = Some((pattern.clone(), text.clone()));
            }
            (None, None) => return true,
            (Some('?'), Some(_)) => {}
            (Some(wanted), Some(found)) if wanted == found => {}
            // At the end of the text no `*` can help.
            (Some(_), None) => return false,
            (_, Some(_)) => {
                let Some((after, from)) = &mut last_star else { return false };
                from.next();
                (pattern, text) = (after.clone(), from.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::matches;

    #[test]
    fn stars_take_any_run_and_question_marks_one_character() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("*", "", true),
            ("?", "", false),
            ("mm.*", "mm.fold", true),
            ("mm.*", "mm.", true),
            ("mm.*", "mm", false),
            ("*.fold", "mm.contpte.fold", true),
            ("*.fold", "mm.fold.twice", false),
            ("mm.????", "mm.fold", true),
            ("mm.????", "mm.unfold", false),
            ("*a*b*c*", "-a-b-c-", true),
            ("*a*b*c*", "-a-c-b-", false),
            ("a*ab", "aaab", true),
            ("**", "anything", true),
            ("[a]", "a", false),
            ("?", "\u{e9}", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }

    /// Exponential in a matcher that recurses for every star.
    #[test]
    fn many_stars_end_soon() {
        assert!(!matches(&("a*".repeat(200) + "b"), &"a".repeat(2000)));
        assert!(!matches(&("*a".repeat(200) + "b"), &"a".repeat(2000)));
    }

    /// The definition, with every choice tried.
    fn reference(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=text.len()).any(|taken| reference(rest, &text[taken..])),
            (['?', rest @ ..], [_, text @ ..]) => reference(rest, text),
            ([wanted, rest @ ..], [found, text @ ..]) => wanted == found && reference(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), reference(&chars(&pattern), &chars(&text)));
        }
    }
}
