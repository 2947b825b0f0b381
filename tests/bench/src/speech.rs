//! The request everybody sends, and what the fake provider answers to it. The first word of `input` is
//! what the two agree on: no proxy on the way has to know it.

use memchr::memmem;

/// The key every client shows; only aulos looks at it.
pub const CLIENT_KEY: &str = "bench-key-of-no-worth";
/// The key aulos shows to the provider, who looks at none.
pub const PROVIDER_KEY: &str = "provider-key-of-no-worth";
/// Where the provider's own API is, at the gateway. The other proxies pass it on as it is, and the provider does not
/// look at it.
pub const PASSED: &str = "/p/openai";
/// Of an answer that is heard to its end; it is that of an upload of a file of as many bytes, alone.
pub const LONG_BYTES: usize = 1_000_000_000;
/// No proxy can hold this much: a client that stops reading stops the provider.
pub const ENDLESS_BYTES: usize = 1 << 30;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speech {
    /// A short answer: the cost of a request.
    Small,
    /// 100 KB of audio: the cost of its bytes.
    Clip,
    /// A gigabyte of audio, in which no piece is like another.
    Long,
    /// The same, with no length announced.
    Chunked,
    /// Audio without end, as fast as it is taken.
    Slow,
    /// Audio without end at the pace of speech.
    Paced,
    /// The connection is reset before an answer.
    Reset,
    /// The connection is reset in the middle of one.
    Cut,
}

impl Speech {
    const ALL: [Self; 8] =
        [Self::Small, Self::Clip, Self::Long, Self::Chunked, Self::Slow, Self::Paced, Self::Reset, Self::Cut];

    pub fn word(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Clip => "clip",
            Self::Long => "long",
            Self::Chunked => "chunked",
            Self::Slow => "slow",
            Self::Paced => "paced",
            Self::Reset => "reset",
            Self::Cut => "cut",
        }
    }

    /// As its Content-Length says it, where it has one.
    pub fn body_bytes(self) -> usize {
        match self {
            Self::Small => 200,
            Self::Clip | Self::Cut => 102_400,
            Self::Long | Self::Chunked => LONG_BYTES,
            Self::Slow | Self::Paced => ENDLESS_BYTES,
            Self::Reset => 0,
        }
    }

    /// All of what is short. Bytes that differ from place to place, so that a piece lost or doubled shows.
    pub fn body(self) -> Vec<u8> {
        (0..self.body_bytes().min(102_400)).map(|at| (at % 251) as u8).collect()
    }

    /// Which one a request body asks for.
    pub fn asked(body: &[u8]) -> Option<Self> {
        const NAME: &[u8] = b"\"input\":\"";
        let at = memmem::find(body, NAME)? + NAME.len();
        Self::ALL.into_iter().find(|speech| body[at..].starts_with(speech.word().as_bytes()))
    }

    pub fn json(self) -> String {
        self.json_for("openai/tts-1")
    }

    /// Of another model than the one everybody asks for.
    pub fn json_for(self, model: &str) -> String {
        let word = self.word();
        format!(r#"{{"model":"{model}","input":"{word} talk, for the bench to hear","voice":"alloy"}}"#)
    }

    pub fn request(self) -> Vec<u8> {
        post(CLIENT_KEY, "", self.json().as_bytes())
    }

    /// The same request to the provider's own API.
    pub fn passed(self) -> Vec<u8> {
        const METHOD: &[u8] = b"POST ";
        [METHOD, PASSED.as_bytes(), &self.request()[METHOD.len()..]].concat()
    }
}

/// A request for speech; `fields` are more header lines, each with its end.
pub fn post(key: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /v1/audio/speech HTTP/1.1\r\nHost: bench.test\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n{fields}\r\n"
    );
    [head.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head;

    #[test]
    fn what_is_asked_is_understood() {
        for speech in Speech::ALL {
            let request = speech.request();
            let body = head::end(&request).map_or(&[][..], |at| &request[at..]);
            assert_eq!(head::content_length(&request), Some(body.len()), "{speech:?}");
            assert_eq!(Speech::asked(body), Some(speech));
            assert!(speech.passed().starts_with(b"POST /p/openai/v1/audio/speech HTTP/1.1\r\n"));
            assert!(speech.passed().ends_with(body));
        }
        assert_eq!(Speech::asked(b"{\"input\":\"other\"}"), None);
    }
}
