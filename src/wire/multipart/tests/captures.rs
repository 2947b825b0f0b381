//! Forms as real clients sent them.

use std::fs;
use std::path::Path;

use memchr::{memchr, memmem};

use super::run;
use crate::wire::multipart::{Boundary, Scanner, Want};
use crate::wire::testing::same_however_cut;

/// Files of `tests/data/captures`, the parts they have and the model they ask for.
const CAPTURES: &[(&str, &str, &str)] = &[
    (
        "curl-7.88.1_transcribe_arrays_dataurl_truncated",
        "file model response_format chunking_strategy known_speaker_names[] known_speaker_references[] \
         timestamp_granularities[] chunking_strategy",
        "gpt-4o-transcribe-diarize",
    ),
    ("curl-7.88.1_transcribe_docs_example", "file model", "gpt-4o-transcribe"),
    ("curl-7.88.1_transcribe_model_first", "model file", "whisper-1"),
    ("curl-7.88.1_transcribe_unicode_filename", "file model", "whisper-1"),
    ("go1.19-stdlib_transcribe_buffered", "file language model response_format", "whisper-1"),
    ("openai-node-4.104.0_transcribe_stream", "model response_format timestamp_granularities[] file", "whisper-1"),
    ("openai-node-5.23.2_transcribe_buffer", "file model response_format timestamp_granularities[]", "whisper-1"),
    ("openai-node-6.49.0_transcribe_stream_chunked", "file model", "whisper-1"),
    ("openai-node-7.55.0_azure_deployment_transcribe_chunked", "file model", "my-whisper-deployment"),
    ("openai-node-7.55.0_realtime_calls_multipart", "sdp session", ""),
    ("openai-node-7.55.0_transcribe_buffer_unicode_filename", "file model", "whisper-1"),
    ("openai-node-7.55.0_transcribe_file_verbose", "file model response_format timestamp_granularities[]", "whisper-1"),
    ("openai-node-7.55.0_transcribe_stream_chunked", "file model", "whisper-1"),
    ("openai-node-7.55.0_transcribe_stream_chunked_model_first", "model file", "whisper-1"),
    ("openai-python-3.52.0_azure_v1_transcribe", "model file", "my-whisper-deployment"),
    ("openai-python-3.52.0_realtime_calls_multipart", "sdp session", ""),
    ("openai-python-3.52.0_transcribe_basic", "model file", "whisper-1"),
    (
        "openai-python-3.52.0_transcribe_gpt-transcribe_keywords_languages",
        "model keywords[] languages[] languages[] file",
        "gpt-transcribe",
    ),
    (
        "openai-python-3.52.0_transcribe_stream_logprobs",
        "model chunking_strategy include[] response_format stream file",
        "gpt-4o-transcribe",
    ),
    (
        "openai-python-3.52.0_transcribe_verbose_options",
        "model language prompt response_format temperature timestamp_granularities[] timestamp_granularities[] file",
        "whisper-1",
    ),
    ("openai-python-3.52.0_translate", "model response_format file", "whisper-1"),
    ("openai-python-3.52.0_voices_create", "consent name audio_sample", ""),
];

/// The Content-Type and the body of a captured request.
fn capture(file: &str) -> (String, Vec<u8>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/captures/{file}.http"));
    let raw = fs::read(path).expect(file);
    let end = memmem::find(&raw, b"\r\n\r\n").expect(file);
    let head = str::from_utf8(&raw[..end]).expect(file);
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    let body = &raw[end + 4..];
    let body = if header("transfer-encoding") == Some("chunked") { dechunk(body) } else { body.to_vec() };
    (header("content-type").expect(file).to_owned(), body)
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = memchr(b'\r', rest).expect("a chunk size");
        let size = usize::from_str_radix(str::from_utf8(&rest[..line]).expect("ASCII"), 16).expect("a number");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..][..size]);
        rest = &rest[line + 2 + size + 2..];
    }
}

#[test]
fn what_real_clients_sent_is_read_however_it_is_cut() {
    for (file, names, model) in CAPTURES {
        let (content_type, body) = capture(file);
        let boundary = Boundary::parse(&content_type).expect(file);
        let judge = |pieces: &[&[u8]]| {
            let outcome = run(&boundary, pieces);
            assert_eq!(outcome.end, Ok(()), "{file}");
            outcome
        };
        same_however_cut(&body, judge);
        let outcome = judge(&[&body]);
        let models = outcome.parts.iter().filter(|part| part.name == "model").map(|part| part.text.as_slice());
        let want = Some(model.as_bytes()).filter(|model| !model.is_empty());
        assert_eq!(models.collect::<Vec<_>>(), Vec::from_iter(want), "{file}");

        let mut everything = Scanner::new(&boundary, |_| Want::Text);
        assert_eq!(everything.push(&body), Ok(()), "{file}");
        let found: Vec<_> = everything.parts().iter().map(|part| part.name.as_str()).collect();
        assert_eq!(found.join(" "), *names, "{file}");
    }
}
