//! Where a text may be cut, so that its first part is heard while the next is made.
//!
//! The pieces are the text itself, in order, without the white space between them.

/// A sentence longer than this is cut between two of its words.
const SENTENCE_CHARS_MAX: usize = 240;

/// Words whose full stop does not end a sentence.
const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "no", "nos", "fig", "gen", "rev", "hon", "approx", "dept",
    "est", "inc", "ltd", "co", "corp", "vol", "pp", "cf",
];

/// The portions to speak `text` in: its first sentence by itself, then as many at a time as are no longer together
/// than a long one, for an engine takes longer to start than to speak a word.
pub(super) fn portions(text: &str) -> Vec<&str> {
    let mut first = true;
    cut(text, |rest| if std::mem::take(&mut first) { end_of_first(rest) } else { end_of_several(rest) })
}

fn cut(text: &str, mut end: impl FnMut(&str) -> usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(end(rest));
        pieces.push(piece.trim_end());
        rest = behind.trim_start();
    }
    pieces
}

/// Where the first sentence of `text` ends, as well as punctuation can tell; `text` begins with no white space.
fn end_of_first(text: &str) -> usize {
    let mut last_space = None;
    for (count, (at, c)) in text.char_indices().enumerate() {
        if count == SENTENCE_CHARS_MAX {
            return last_space.unwrap_or(at);
        }
        if c.is_whitespace() {
            last_space = Some(at);
        }
        let behind = at + c.len_utf8();
        let end = behind + closing(&text[behind..]);
        let at_space = text[end..].chars().next().is_none_or(char::is_whitespace);
        let ends = match c {
            '。' | '！' | '？' => true,
            '!' | '?' | '…' => at_space,
            '.' => at_space && !abbreviates(&text[..at]),
            '\n' => is_blank_line(&text[behind..]),
            _ => false,
        };
        if ends && fits(&text[..end]) {
            return end;
        }
    }
    text.len()
}

fn end_of_several(text: &str) -> usize {
    let mut end = end_of_first(text);
    loop {
        let behind = text[end..].trim_start();
        let next = text.len() - behind.len() + end_of_first(behind);
        if behind.is_empty() || !fits(&text[..next]) {
            return end;
        }
        end = next;
    }
}

/// Quotation marks and brackets that still belong to the sentence they close, in bytes.
fn closing(text: &str) -> usize {
    text.len() - text.trim_start_matches(['"', '\'', ')', ']', '}', '”', '’', '»', '」', '』', '）']).len()
}

fn fits(piece: &str) -> bool {
    piece.chars().nth(SENTENCE_CHARS_MAX).is_none()
}

fn is_blank_line(text: &str) -> bool {
    text.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\n')
}

/// Whether a full stop behind `before` belongs to its last word: `Dr`, `J`, `e.g`.
fn abbreviates(before: &str) -> bool {
    let word = before.rsplit(char::is_whitespace).next().unwrap_or_default();
    let word = word.trim_start_matches(|c: char| !c.is_alphanumeric());
    let mut letters = word.chars();
    match (letters.next(), letters.next()) {
        (Some(letter), None) => letter.is_uppercase() && letter != 'I',
        (Some(_), Some('.')) => true,
        _ => ABBREVIATIONS.contains(&word.to_lowercase().as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sentences_end_where_a_reader_would_pause() {
        let rows: &[(&str, &[&str])] = &[
            ("", &[]),
            (" \n ", &[]),
            ("One", &["One"]),
            ("One. Two? Three!", &["One.", "Two?", "Three!"]),
            ("Wait... what?! Yes.", &["Wait...", "what?!", "Yes."]),
            ("Wait… what?", &["Wait…", "what?"]),
            ("He said \"Go.\" She went.", &["He said \"Go.\"", "She went."]),
            ("(It was late.) We left.", &["(It was late.)", "We left."]),
            ("Dr. Smith met J. R. Jones, e.g. here.", &["Dr. Smith met J. R. Jones, e.g. here."]),
            ("It is I. Come in.", &["It is I.", "Come in."]),
            ("Pi is 3.14 or so. See example.org now.", &["Pi is 3.14 or so.", "See example.org now."]),
            ("A heading\n\nA text\ngoes on", &["A heading", "A text\ngoes on"]),
            ("你好。今天很好！好", &["你好。", "今天很好！", "好"]),
            ("...", &["..."]),
        ];
        for (text, want) in rows {
            assert_eq!(cut(text, end_of_first), *want, "{text}");
        }
    }

    #[test]
    fn a_text_without_stops_is_cut_between_words() {
        let text = "word ".repeat(200);
        let pieces = cut(&text, end_of_first);
        assert!(pieces.len() > 4);
        assert!(pieces.iter().all(|piece| piece.split(' ').all(|word| word == "word")));
        assert_eq!(portions(&"x".repeat(500)).iter().map(|piece| piece.len()).collect::<Vec<_>>(), [240, 240, 20]);
    }

    #[test]
    fn the_first_sentence_comes_alone_the_others_in_company() {
        assert_eq!(portions("One. Two? Three!"), ["One.", "Two? Three!"]);
        let many = "a! ".repeat(1000);
        assert_eq!(portions(&many).len(), 1 + 999_usize.div_ceil(80), "80 of three characters in 240");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_piece_is_long(text in "(?s)([a-zA-Z .!?\"')\n。é]|.){0,700}") {
            let bare = |text: &str| text.split_whitespace().collect::<String>();
            for pieces in [cut(&text, end_of_first), portions(&text)] {
                prop_assert_eq!(bare(&pieces.concat()), bare(&text));
                for piece in pieces {
                    prop_assert!(!piece.is_empty());
                    prop_assert_eq!(piece, piece.trim());
                    prop_assert!(fits(piece));
                }
            }
        }
    }
}
