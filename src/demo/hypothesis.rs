//! What pocketsphinx writes, line by line, and the segments of speech in it.
//!
//! The two versions say the same in different words. Both count from the beginning of the recording, in seconds, and
//! both name what is no word: `<s>` and `</s>` around an utterance, `<sil>`, `[NOISE]`.

use serde::Deserialize;

/// How a version of pocketsphinx writes what it heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Version 0.8: a line of words, then each word on a line of its own, with beginning, end and confidence.
    Lines,
    /// Version 5: an object a line, with an array of objects in it.
    Json,
}

/// A word, and when it was heard, in milliseconds from the beginning of the recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) start_ms: u64,
    pub(super) end_ms: u64,
}

/// What was said between two silences: at least one word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) words: Vec<Word>,
    pub(super) start_ms: u64,
    pub(super) end_ms: u64,
}

impl Segment {
    fn of(words: Vec<Word>) -> Option<Self> {
        let (start_ms, end_ms) = (words.first()?.start_ms, words.last()?.end_ms);
        Some(Self { words, start_ms, end_ms })
    }

    pub(super) fn text(&self) -> String {
        let words: Vec<&str> = self.words.iter().map(|word| word.text.as_str()).collect();
        words.join(" ")
    }
}

/// A line that no version of pocketsphinx writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it wrote a line that is not understood")]
pub(super) struct Gibberish;

/// Reads what one pocketsphinx writes.
pub(super) struct Hypotheses {
    dialect: Dialect,
    /// The words of the utterance whose lines are being read.
    words: Vec<Word>,
}

impl Hypotheses {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self { dialect, words: Vec::new() }
    }

    /// Takes the next line, without its end. Gives a segment where it completes one.
    pub(super) fn push(&mut self, line: &str) -> Result<Option<Segment>, Gibberish> {
        match self.dialect {
            Dialect::Lines => Ok(self.push_plain(line)),
            Dialect::Json => {
                let utterance: Utterance = serde_json::from_str(line).map_err(|_| Gibberish)?;
                Ok(Segment::of(utterance.w.into_iter().filter_map(Token::word).collect()))
            }
        }
    }

    /// There are no more lines: gives the segment they have begun, if they have.
    pub(super) fn finish(&mut self) -> Option<Segment> {
        Segment::of(std::mem::take(&mut self.words))
    }

    fn push_plain(&mut self, line: &str) -> Option<Segment> {
        let Some(token) = Token::parse(line) else {
            // The line of words that opens an utterance. The next lines say the same.
            return self.finish();
        };
        if token.t == "</s>" {
            return self.finish();
        }
        self.words.extend(token.word());
        None
    }
}

/// Of the object that version 5 writes for an utterance, what is needed. The names are its own.
#[derive(Deserialize)]
struct Utterance {
    w: Vec<Token>,
}

/// A word, or what is none: begin and duration in seconds, text.
#[derive(Deserialize)]
struct Token {
    b: f64,
    d: f64,
    t: String,
}

impl Token {
    /// Reads `word 2.880 3.120 0.999800`. No word of the dictionary begins with a digit, so no line of words is one.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let text = fields.next()?;
        let mut number = || fields.next().filter(|field| field.starts_with(|c: char| c.is_ascii_digit()))?.parse().ok();
        let (begin, end, _confidence): (f64, f64, f64) = (number()?, number()?, number()?);
        fields.next().is_none().then(|| Self { b: begin, d: end - begin, t: text.to_owned() })
    }

    fn word(self) -> Option<Word> {
        if self.t.is_empty() || self.t.starts_with(['<', '[', '+']) {
            return None;
        }
        // The second way to pronounce `your` is called `your(2)`.
        let text = self.t.split('(').next().unwrap_or_default().to_owned();
        Some(Word { text, start_ms: milliseconds(self.b), end_ms: milliseconds(self.b + self.d) })
    }
}

/// Below zero is zero: the cast saturates.
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(dialect: Dialect, output: &str) -> Result<Vec<Segment>, Gibberish> {
        let mut hypotheses = Hypotheses::new(dialect);
        let mut segments = Vec::new();
        for line in output.lines() {
            segments.extend(hypotheses.push(line)?);
        }
        segments.extend(hypotheses.finish());
        Ok(segments)
    }

    fn segment(words: &[(&str, u64, u64)]) -> Segment {
        let word = |(text, start_ms, end_ms): &(&str, u64, u64)| Word {
            text: (*text).to_owned(),
            start_ms: *start_ms,
            end_ms: *end_ms,
        };
        Segment::of(words.iter().map(word).collect()).expect("words")
    }

    #[test]
    fn what_version_0_8_writes() {
        let output = "it is your own
<s> 2.880 3.120 0.999800
it 3.130 3.600 0.739090
is(2) 3.610 3.960 0.997004
<sil> 4.870 4.920 0.741830
your(2) 5.770 6.010 0.793083
own 6.020 6.280 1.000000
</s> 6.290 7.120 1.000000

<s> 8.000 8.720 0.999800
[NOISE] 8.800 8.900 1.000100
</s> 8.910 9.000 1.000000
c1 a.m.
<s> 10.000 10.100 1.000000
c1 10.110 10.200 1.000000
a.m. 10.210 11.000 1.000200
</s> 11.010 11.020 1.0
";
        let want = vec![
            segment(&[("it", 3130, 3600), ("is", 3610, 3960), ("your", 5770, 6010), ("own", 6020, 6280)]),
            segment(&[("c1", 10110, 10200), ("a.m.", 10210, 11000)]),
        ];
        assert_eq!(run(Dialect::Lines, output), Ok(want));
    }

    #[test]
    fn an_utterance_without_its_last_line_ends_with_the_next() {
        let output = "one\n<s> 0.0 0.1 1.0\none 0.1 0.2 1.0\ntwo\n<s> 1.0 1.1 1.0\ntwo 1.1 1.2 1.0\n";
        assert_eq!(
            run(Dialect::Lines, output),
            Ok(vec![segment(&[("one", 100, 200)]), segment(&[("two", 1100, 1200)])])
        );
    }

    #[test]
    fn words_are_no_numbers() {
        for line in ["nan inf nan", "a inf nan infinity", "one two three four", "it 1.0 2.0", "it 1.0 2.0 3.0 4.0", ""]
        {
            assert!(Token::parse(line).is_none(), "{line}");
        }
    }

    #[test]
    fn what_version_5_writes() {
        let output = concat!(
            r#"{"b":3.000,"d":4.290,"p":0.044,"t":"hello your own","w":[{"b":3.000,"d":0.120,"p":1.000,"t":"<s>"},"#,
            r#"{"b":3.120,"d":0.480,"p":0.781,"t":"hello"},{"b":4.880,"d":0.040,"p":0.714,"t":"<sil>"},"#,
            r#"{"b":5.760,"d":0.270,"p":0.777,"t":"your(2)"},{"b":6.030,"d":0.250,"p":1.000,"t":"own"},"#,
            r#"{"b":7.040,"d":0.240,"p":1.000,"t":"</s>"}]}"#,
            "\n",
            r#"{"b":8.000,"d":5.010,"p":0.408,"t":"","w":[{"b":8.000,"d":3.030,"p":1.000,"t":"<s>"},"#,
            r#"{"b":11.030,"d":1.670,"p":1.000,"t":"[SPEECH]"},{"b":12.700,"d":0.030,"p":1.000,"t":"</s>"}]}"#,
            "\n",
            r#"{"b":14.000,"d":0.000,"p":1.000,"t":"","w":[]}"#,
        );
        let want = segment(&[("hello", 3120, 3600), ("your", 5760, 6030), ("own", 6030, 6280)]);
        assert_eq!(want.text(), "hello your own");
        assert_eq!(run(Dialect::Json, output), Ok(vec![want]));
        for line in ["", "hello", "{}", r#"{"w":[{"t":"hello"}]}"#, r#"{"w":[{"b":0,"d":1,"t":"he"said"}]}"#] {
            assert_eq!(Hypotheses::new(Dialect::Json).push(line), Err(Gibberish), "{line}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_no_segment_is_without_a_word(
            output in "((a|<s>|</s>|b\\(2\\)|\\[X\\])?( -?[0-9.]{1,4}){0,4}\n){0,20}",
        ) {
            for segment in run(Dialect::Lines, &output).expect("the plain dialect takes every line") {
                prop_assert!(!segment.text().is_empty());
                prop_assert_eq!(segment.start_ms, segment.words[0].start_ms);
            }
        }
    }
}
