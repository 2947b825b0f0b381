//! A transcript in the forms OpenAI's API gives it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::hypothesis::Segment;
use super::transcription::{Detail, Layout};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const EVENTS: &str = "text/event-stream";

/// What was said in a whole recording.
pub(super) struct Transcript {
    pub(super) segments: Vec<Segment>,
    pub(super) duration_ms: u64,
}

impl Transcript {
    /// The media type of this layout, and the transcript in it.
    pub(super) fn render(&self, layout: Layout) -> (&'static str, String) {
        match layout {
            Layout::Json => (JSON, json!({ "text": self.text(), "usage": self.usage() }).to_string()),
            Layout::Text => (TEXT, self.text() + "\n"),
            Layout::Verbose(detail) => (JSON, self.verbose(detail).to_string()),
            Layout::Srt => (TEXT, self.cues("", Clock { mark: ',', numbered: true })),
            Layout::Vtt => (TEXT, self.cues("WEBVTT\n\n", Clock { mark: '.', numbered: false })),
        }
    }

    /// The last of the events of a transcript that was sent [piece by piece](delta).
    pub(super) fn done(&self) -> String {
        event(&json!({ "type": "transcript.text.done", "text": self.text(), "usage": self.usage() }))
    }

    fn text(&self) -> String {
        let texts: Vec<String> = self.segments.iter().map(Segment::text).collect();
        texts.join(" ")
    }

    /// A second that has begun is a second.
    fn usage(&self) -> Value {
        json!({ "type": "duration", "seconds": self.duration_ms.div_ceil(1000) })
    }

    fn verbose(&self, detail: Detail) -> Value {
        let mut answer = json!({
            "task": "transcribe",
            "language": "english",
            "duration": seconds(self.duration_ms),
            "text": self.text(),
        });
        if detail.words {
            let words = self.segments.iter().flat_map(|segment| &segment.words);
            answer["words"] = words
                .map(|word| json!({ "word": word.text, "start": seconds(word.start_ms), "end": seconds(word.end_ms) }))
                .collect();
        }
        if detail.segments {
            let segments = self.segments.iter().enumerate();
            answer["segments"] = segments
                .map(|(id, segment)| {
                    let (start, end) = (seconds(segment.start_ms), seconds(segment.end_ms));
                    json!({ "id": id, "start": start, "end": end, "text": segment.text() })
                })
                .collect();
        }
        answer["usage"] = self.usage();
        answer
    }

    fn cues(&self, head: &str, clock: Clock) -> String {
        let mut file = head.to_owned();
        for (number, segment) in (1..).zip(&self.segments) {
            if clock.numbered {
                let _ = writeln!(file, "{number}");
            }
            let (start, end) = (clock.time(segment.start_ms), clock.time(segment.end_ms));
            let _ = write!(file, "{start} --> {end}\n{}\n\n", segment.text());
        }
        file
    }
}

/// In what SubRip and WebVTT differ.
#[derive(Clone, Copy)]
struct Clock {
    /// Between seconds and milliseconds.
    mark: char,
    numbered: bool,
}

impl Clock {
    fn time(self, ms: u64) -> String {
        let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        format!("{hours:02}:{minutes:02}:{seconds:02}{}{:03}", self.mark, ms % 1000)
    }
}

/// The event that adds a segment to those sent before it.
pub(super) fn delta(before: &[Segment], segment: &Segment) -> String {
    let space = if before.is_empty() { "" } else { " " };
    event(&json!({ "type": "transcript.text.delta", "delta": format!("{space}{}", segment.text()) }))
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::hypothesis::Word;

    fn segment(words: &[&str], start_ms: u64) -> Segment {
        let word = |(n, text): (u64, &&str)| Word {
            text: (*text).to_owned(),
            start_ms: start_ms + n * 500,
            end_ms: start_ms + n * 500 + 499,
        };
        let words: Vec<Word> = (0..).zip(words).map(word).collect();
        let end_ms = words.last().expect("words").end_ms;
        Segment { words, start_ms, end_ms }
    }

    fn transcript() -> Transcript {
        let segments = vec![segment(&["good", "morning"], 120), segment(&["goodbye"], 3_725_006)];
        Transcript { segments, duration_ms: 3_726_001 }
    }

    const NOTHING: Transcript = Transcript { segments: Vec::new(), duration_ms: 3000 };

    fn json(transcript: &Transcript, layout: Layout) -> Value {
        let (media, body) = transcript.render(layout);
        assert_eq!(media, "application/json");
        serde_json::from_str(&body).expect("JSON")
    }

    #[test]
    fn every_layout_is_openais() {
        let usage = json!({ "type": "duration", "seconds": 3727 });
        assert_eq!(json(&transcript(), Layout::Json), json!({ "text": "good morning goodbye", "usage": usage }));
        for (layout, want) in [
            (Layout::Text, "good morning goodbye\n"),
            (
                Layout::Srt,
                "1\n00:00:00,120 --> 00:00:01,119\ngood morning\n\n2\n01:02:05,006 --> 01:02:05,505\ngoodbye\n\n",
            ),
            (
                Layout::Vtt,
                "WEBVTT\n\n00:00:00.120 --> 00:00:01.119\ngood morning\n\n01:02:05.006 --> 01:02:05.505\ngoodbye\n\n",
            ),
        ] {
            assert_eq!(transcript().render(layout), ("text/plain; charset=utf-8", want.to_owned()));
        }
    }

    #[test]
    fn verbose_json_has_the_detail_that_was_asked_for() {
        let segments = json!([
            { "id": 0, "start": 0.12, "end": 1.119, "text": "good morning" },
            { "id": 1, "start": 3725.006, "end": 3725.505, "text": "goodbye" },
        ]);
        let words = json!([
            { "word": "good", "start": 0.12, "end": 0.619 },
            { "word": "morning", "start": 0.62, "end": 1.119 },
            { "word": "goodbye", "start": 3725.006, "end": 3725.505 },
        ]);
        for (detail, want_segments, want_words) in [
            (Detail { segments: true, words: false }, Some(&segments), None),
            (Detail { segments: false, words: true }, None, Some(&words)),
            (Detail { segments: true, words: true }, Some(&segments), Some(&words)),
        ] {
            let answer = json(&transcript(), Layout::Verbose(detail));
            assert_eq!((answer.get("segments"), answer.get("words")), (want_segments, want_words));
            assert_eq!((&answer["task"], &answer["language"]), (&json!("transcribe"), &json!("english")));
            assert_eq!((&answer["duration"], &answer["usage"]["seconds"]), (&json!(3726.001), &json!(3727)));
            assert_eq!(answer["text"], "good morning goodbye");
        }
    }

    #[test]
    fn silence_is_an_empty_text() {
        let usage = json!({ "type": "duration", "seconds": 3 });
        assert_eq!(json(&NOTHING, Layout::Json), json!({ "text": "", "usage": usage }));
        assert_eq!(json(&NOTHING, Layout::Verbose(Detail { segments: true, words: true }))["segments"], json!([]));
        assert_eq!(NOTHING.render(Layout::Text).1, "\n");
        assert_eq!(
            (NOTHING.render(Layout::Srt).1, NOTHING.render(Layout::Vtt).1),
            (String::new(), "WEBVTT\n\n".into())
        );
    }

    #[test]
    fn the_deltas_together_are_the_text() {
        let Transcript { segments, .. } = transcript();
        let data = |event: String| -> Value {
            let data = event.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n")).expect("an event");
            serde_json::from_str(data).expect("JSON")
        };
        let deltas: String = (0..segments.len())
            .map(|n| data(delta(&segments[..n], &segments[n]))["delta"].as_str().expect("a text").to_owned())
            .collect();
        let done = data(transcript().done());
        assert_eq!((&done["type"], &done["text"]), (&json!("transcript.text.done"), &json!(deltas)));
        assert_eq!(done["usage"]["seconds"], 3727);
    }
}
