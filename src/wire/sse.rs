//! Server-sent events, as far as it matters when one of them was the last.

/// How much of a line is looked at: what a last event begins with.
const LINE_BYTES_MAX: usize = 64;
/// What says, after `data:`, that nothing follows: chat's end (OpenAI API reference, chat streaming), and speech's.
const LAST: [&[u8]; 3] = [b"[DONE]", b"{\"type\":\"speech.audio.done\"", b"{\"type\": \"speech.audio.done\""];

/// Watches a stream of events for its last one. Clients leave as soon as they have read it.
#[derive(Debug, Default)]
pub struct Ends {
    /// The beginning of the line that is passing.
    line: Vec<u8>,
    over: bool,
}

impl Ends {
    pub fn see(&mut self, chunk: &[u8]) {
        if self.over {
            return;
        }
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            self.over |= is_last(&self.line);
            if part.ends_with(b"\n") {
                self.line.clear();
            }
        }
    }

    /// Whether the last event has passed.
    pub fn over(&self) -> bool {
        self.over
    }
}

fn is_last(line: &[u8]) -> bool {
    let Some(data) = line.strip_prefix(b"data:") else { return false };
    LAST.iter().any(|last| data.trim_ascii_start().starts_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::same_however_cut;

    #[test]
    fn the_last_event_is_known_however_it_is_cut() {
        let long = format!("data: {{\"audio\":\"{}\"}}\n\ndata: [DONE]\n\n", "A".repeat(500));
        for (text, want) in [
            ("data: {\"a\":1}\n\n", false),
            ("data: {\"a\":1}\n\ndata: [DONE]\n\n", true),
            ("data:[DONE]\r\n\r\n", true),
            ("data: {\"text\":\"data: [DONE]\"}\n\n", false),
            (": data: [DONE]\n\n", false),
            ("data: {\"type\":\"speech.audio.done\",\"usage\":{}}\n\n", true),
            ("data: {\"type\":\"speech.audio.delta\",\"audio\":\"AAAA\"}\n\n", false),
            (&long, true),
            ("", false),
        ] {
            let run = |pieces: &[&[u8]]| {
                let mut ends = Ends::default();
                pieces.iter().for_each(|piece| ends.see(piece));
                ends.over()
            };
            assert_eq!(run(&[text.as_bytes()]), want, "{text}");
            same_however_cut(text.as_bytes(), run);
        }
    }
}
