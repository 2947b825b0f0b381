//! Transcriptions: by the recogniser that is installed, and by programs that take its place.

use super::*;

/// Recognised word for word in every voice of flite, by both versions of pocketsphinx.
const WEATHER: &str = "The weather is very nice today.";

/// A form under construction.
#[derive(Default)]
struct Form(Vec<u8>);

impl Form {
    /// What every request needs, but for the file.
    fn new() -> Self {
        Self::default().field("model", TRANSCRIPTION_MODEL)
    }

    fn field(mut self, name: &str, value: &str) -> Self {
        self.0.extend(format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes());
        self
    }

    fn file(mut self, bytes: &[u8]) -> Self {
        self.0.extend(b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/etc/passwd\"\r\n\r\n");
        self.0.extend_from_slice(bytes);
        self.0.extend(b"\r\n");
        self
    }

    fn post(mut self) -> Vec<u8> {
        self.0.extend(b"--b--\r\n");
        post_form(&self.0)
    }
}

fn post_form(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

impl Server {
    /// The words of `form`'s file, where the answer is JSON.
    async fn text_of(&self, form: Form) -> String {
        let answer = self.ask(&form.post()).await;
        assert_eq!((answer.status, answer.complete), (200, true), "{:?}", String::from_utf8_lossy(&answer.body));
        answer.json()["text"].as_str().expect("a text").to_owned()
    }
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("an answer in JSON")
    }
}

/// Two sentences with a second of silence between them, as a wave of 24 kHz.
async fn two_sentences(server: &Server) -> Vec<u8> {
    let first = server.say(json!({ "input": WEATHER })).await.samples();
    let second = server.say(json!({ "input": "I would like to buy a house in the country." })).await.samples();
    let samples = [&first[..], &[0; 24_000], &second].concat();
    wave::wave_of(24_000, u32::try_from(samples.len() * 2).expect("some seconds"), &samples)
}

fn silence(seconds: usize) -> Vec<u8> {
    wave::wave_of(8_000, u32::try_from(seconds * 16_000).expect("some minutes"), &vec![0; seconds * 8_000])
}

#[tokio::test]
async fn what_was_spoken_is_heard_in_every_format() {
    let server = Server::start().await;
    for format in ["mp3", "opus", "aac", "flac", "wav"] {
        let file = server.say(json!({ "input": WEATHER, "response_format": format })).await.body;
        let text = server.text_of(Form::new().file(&file)).await;
        let said = ["weather", "very", "nice", "today"].iter().filter(|word| text.contains(*word)).count();
        assert!(said >= 3, "{format}: {text}");
    }
}

#[tokio::test]
async fn a_file_whose_head_is_at_its_end_is_read_too() {
    let server = Server::start().await;
    let wave = server.say(json!({ "input": WEATHER })).await.body;
    let folder = FakeEngine::new("none", "m4a", "");
    std::fs::write(folder.folder.join("in.wav"), wave).expect("the temporary folder");
    let arguments = ["-nostdin", "-loglevel", "error", "-i", "in.wav", "-c:a", "aac", "out.m4a"];
    run(Command::new("ffmpeg").args(arguments).current_dir(&folder.folder));
    let file = std::fs::read(folder.folder.join("out.m4a")).expect("the temporary folder");
    let place = |name: &[u8]| file.windows(4).position(|bytes| bytes == name).expect("an M4A");
    assert!(place(b"moov") > place(b"mdat"));
    assert!(server.text_of(Form::default().file(&file).field("model", "demo-stt")).await.contains("weather"));
}

#[tokio::test]
async fn every_layout_tells_the_same() {
    let server = Server::start().await;
    let file = two_sentences(&server).await;
    let text = server.text_of(Form::new().file(&file)).await;
    assert!(text.contains("weather") && text.contains("country"), "{text}");
    let layout = async |layout: &str| {
        let form = Form::new().field("response_format", layout).field("timestamp_granularities[]", "word");
        server.ask(&form.field("timestamp_granularities[]", "segment").file(&file).post()).await
    };
    let verbose = layout("verbose_json").await.json();
    assert_eq!((&verbose["text"], &verbose["language"]), (&json!(text), &json!("english")));
    let duration = verbose["duration"].as_f64().expect("a number");
    let seconds = (file.len() - wave::HEAD.len()) as f64 / 48_000.0;
    assert!((duration - seconds).abs() < 0.01, "{duration} is not {seconds}");
    assert_eq!(verbose["usage"], json!({ "type": "duration", "seconds": duration.ceil() as u64 }));
    let segments = verbose["segments"].as_array().expect("segments");
    assert!(segments.len() >= 2, "{segments:?}");
    let mut times: Vec<f64> = Vec::new();
    for segment in segments {
        times.extend(["start", "end"].map(|edge| segment[edge].as_f64().expect("a number")));
    }
    assert!(times.is_sorted() && times.last() < Some(&duration), "{times:?} of {duration}");
    assert!(times.windows(2).any(|pair| pair[1] - pair[0] > 0.5), "the silence is between two segments: {times:?}");
    assert_eq!(verbose["words"].as_array().map(Vec::len), Some(text.split(' ').count()));
    for (name, head) in [("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n00:00:0")] {
        let answer = layout(name).await;
        let cues = String::from_utf8(answer.body.clone()).expect("text");
        assert!(cues.starts_with(head) && cues.matches(" --> ").count() == segments.len(), "{cues}");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    }
    assert_eq!(layout("text").await.body, (text + "\n").into_bytes());
}

#[tokio::test]
async fn a_short_pause_moves_no_times() {
    let server = Server::start().await;
    let input = "Hello. This is your own machine, speaking to you.";
    let file = server.say(json!({ "input": input, "response_format": "mp3" })).await.body;
    let answer = server.ask(&Form::new().field("response_format", "verbose_json").file(&file).post()).await.json();
    let segments = answer["segments"].as_array().expect("segments");
    let (first, last) = (segments.first().expect("a segment"), segments.last().expect("a segment"));
    let time = |time: &Value| time.as_f64().expect("a number");
    let (start, end, duration) = (time(&first["start"]), time(&last["end"]), time(&answer["duration"]));
    assert!(start < 0.4 && (duration - 0.6..duration).contains(&end), "{segments:?} of {duration}");
}

#[tokio::test]
async fn a_stream_has_a_delta_for_each_sentence() {
    let server = Server::start().await;
    let file = two_sentences(&server).await;
    let answer = server.ask(&Form::new().field("stream", "true").file(&file).post()).await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let events = String::from_utf8(answer.body).expect("text");
    let events: Vec<Value> = events
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON"))
        .collect();
    let (done, deltas) = events.split_last().expect("events");
    assert!(deltas.len() >= 2 && deltas.iter().all(|event| event["type"] == "transcript.text.delta"), "{deltas:?}");
    let text: String = deltas.iter().map(|event| event["delta"].as_str().expect("text")).collect();
    assert!(text.contains("weather") && text.contains("country"), "{text}");
    assert_eq!((&done["type"], &done["text"]), (&json!("transcript.text.done"), &json!(text)));
    assert_eq!(done["usage"]["type"], "duration");
}

#[tokio::test]
async fn silence_has_no_words() {
    let server = Server::start().await;
    let answer = server.ask(&Form::new().file(&silence(2)).post()).await;
    assert_eq!(answer.json(), json!({ "text": "", "usage": { "type": "duration", "seconds": 2 } }));
}

#[tokio::test]
async fn what_is_no_recording_is_refused() {
    let server = Server::start().await;
    let mp3 = server.say(json!({ "response_format": "mp3" })).await.body;
    let other = FakeEngine::new("none", "playlist", "");
    std::fs::write(other.folder.join("secret.mp3"), mp3).expect("the temporary folder");
    // ffmpeg would play it, were it asked to.
    let playlist = format!(
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:4.0,\nfile://{}/secret.mp3\n#EXT-X-ENDLIST\n",
        other.folder.display()
    );
    for (label, file, words) in [
        ("nothing", &b""[..], "could not be decoded"),
        ("text", b"This is not a recording. ".repeat(100).as_slice(), "could not be decoded"),
        ("a wave without samples", &silence(0), "could not be decoded"),
        ("a playlist", playlist.as_bytes(), "could not be decoded"),
        ("more than ten minutes", &silence(601), "longer than 600 seconds"),
    ] {
        let answer = server.ask(&Form::new().file(file).post()).await;
        assert_eq!((answer.status, &answer.error()["param"]), (400, &json!("file")), "{label}");
        assert!(answer.error()["message"].as_str().expect("text").contains(words), "{label}");
    }
}

#[tokio::test]
async fn what_is_not_served_is_refused_in_openais_envelope() {
    let server = Server::start().await;
    let no_boundary = String::from_utf8(Form::new().post()).expect("ASCII").replace("; boundary=b", "");
    let huge = [&Form::new().file(&vec![0; upload::UPLOAD_BYTES_MAX]).post()[..], &[0; 4096]].concat();
    let field = |name, value| Form::new().field(name, value).file(b"").post();
    for (label, request, status, code) in [
        ("no form", post("/v1/audio/transcriptions", b"{}"), 415, "unsupported_media_type"),
        ("no boundary", no_boundary.into_bytes(), 400, "invalid_multipart"),
        (
            "cut off",
            post_form(b"--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ndemo"),
            400,
            "invalid_multipart",
        ),
        ("no file", Form::new().post(), 400, "missing_required_parameter"),
        ("no model", Form::default().file(b"").post(), 400, "missing_required_parameter"),
        ("a model", Form::default().field("model", "whisper-1").file(b"").post(), 404, "model_not_found"),
        ("a language", field("language", "de"), 400, "invalid_value"),
        ("a format", field("response_format", "diarized_json"), 400, "invalid_value"),
        ("far too much", huge, 413, "request_too_large"),
        ("translation", post("/v1/audio/translations", b""), 400, "unsupported_endpoint"),
    ] {
        let answer = server.ask(&request).await;
        assert_eq!((answer.status, answer.complete), (status, true), "{label}");
        assert_eq!(answer.error()["code"], code, "{label}");
    }
    let translation = server.ask(&post("/v1/audio/translations", b"")).await.error();
    assert!(translation["message"].as_str().expect("text").contains("cannot translate"));
    assert!(translation["message"].as_str().expect("text").contains("whisper-1"));
}

#[tokio::test]
async fn too_much_is_told_before_it_is_sent() {
    let server = Server::start().await;
    let announced = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n\
                     Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 99999999\r\n\r\n";
    let mut socket = server.send(announced.as_bytes()).await;
    let mut answer = vec![0; 20];
    socket.read_exact(&mut answer).await.expect("the connection");
    assert!(answer.starts_with(b"HTTP/1.1 413 "), "{:?}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn too_much_is_told_where_no_length_was() {
    let server = Server::start().await;
    let head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = Form::new().file(&vec![0; upload::UPLOAD_BYTES_MAX]).0;
    let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let answer = server.ask(&[head.as_bytes(), &chunk].concat()).await;
    assert_eq!((answer.status, &answer.error()["code"]), (413, &json!("request_too_large")));
}

#[tokio::test]
async fn what_this_provider_has_no_use_for_is_ignored() {
    let server = Server::start().await;
    let prompt = "Weather. ".repeat(1000);
    let form = Form::new().file(&silence(1)).field("prompt", &prompt).field("temperature", "0").field("include[]", "x");
    assert_eq!(server.text_of(form.field("language", "en")).await, "");
    let flac = server.say(json!({ "input": WEATHER, "response_format": "flac" })).await.body;
    let nameless = [b"--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n", &flac[..], b"\r\n"].concat();
    assert!(
        server.text_of(Form([nameless, Form::new().0].concat())).await.contains("weather"),
        "a name is no use either"
    );
}

const HELLO: &str = r#"{"b":0.1,"d":1.0,"p":1.0,"t":"hello","w":[{"b":0.2,"d":0.3,"p":1.0,"t":"hello"}]}"#;

#[tokio::test]
async fn either_version_of_the_recogniser_is_understood() {
    for (program, says) in [
        ("pocketsphinx", HELLO),
        ("pocketsphinx_continuous", "hello\n<s> 0.1 0.2 1.0\nhello(2) 0.2 0.5 1.0\n</s> 0.5 0.6 1.0"),
    ] {
        let engine = FakeEngine::new(program, program, &format!("/bin/cat >/dev/null; echo '{says}'"));
        run(Command::new("sh").args(["-c", "ln -s $(command -v ffmpeg) ."]).current_dir(&engine.folder));
        // Nothing else is there, so that no other version is found.
        let server = Server::with_path(engine.folder.clone()).await;
        let form = Form::new().field("response_format", "verbose_json").file(&silence(1));
        let answer = server.ask(&form.post()).await.json();
        assert_eq!(answer["segments"], json!([{ "id": 0, "start": 0.2, "end": 0.5, "text": "hello" }]), "{program}");
    }
}

#[tokio::test]
async fn programs_end_when_the_client_leaves() {
    for (program, stream) in [("ffmpeg", "false"), ("pocketsphinx", "false"), ("pocketsphinx", "true")] {
        // It waits for a writer that never comes: no closed pipe tells it that nobody listens.
        let script = format!("exec 9>alive; echo '{HELLO}'; echo here >&9; exec cat never");
        let engine = FakeEngine::new(program, &format!("leaves-{program}-{stream}"), &script);
        let mut alive = fifo(&engine.folder.join("alive"));
        run(Command::new("mkfifo").arg(engine.folder.join("never")));
        let server = Server::with_path(engine.path()).await;
        let mut client = server.send(&Form::new().field("stream", stream).file(&silence(1)).post()).await;
        let mut seen = vec![0; 5];
        let begun = tokio::time::timeout(Duration::from_secs(20), alive.read_exact(&mut seen)).await;
        begun.expect("it never began").expect("the pipe");
        if stream == "true" {
            let mut answer = Vec::new();
            while !answer.ends_with(b"\"hello\"}\n\n\r\n") {
                assert_ne!(client.read_buf(&mut answer).await.expect("the connection"), 0);
            }
        }
        assert_eq!(server.speaker.turns.available_permits(), TURNS_MAX - 1, "{program}");
        drop(client);
        let ended = tokio::time::timeout(Duration::from_secs(20), alive.read(&mut seen)).await;
        assert_eq!(ended.expect("it still lives").expect("the pipe"), 0, "{program}, stream {stream}");
        while server.speaker.turns.available_permits() < TURNS_MAX {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_recogniser_that_fails_is_an_error_or_an_answer_without_end() {
    for (label, script) in [
        ("at once", "exit 3".to_owned()),
        ("in the end", format!("cat >/dev/null; echo '{HELLO}'; exit 3")),
        ("gibberish", format!("cat >/dev/null; echo '{HELLO}'; echo hello")),
    ] {
        let engine = FakeEngine::new("pocketsphinx", &format!("fails {label}").replace(' ', "-"), &script);
        let server = Server::with_path(engine.path()).await;
        let whole = server.ask(&Form::new().file(&silence(1)).post()).await;
        assert_eq!((whole.status, &whole.error()["code"]), (500, &json!("engine_failed")), "{label}");
        let stream = server.ask(&Form::new().field("stream", "true").file(&silence(1)).post()).await;
        let want = if label == "at once" { (500, true) } else { (200, false) };
        assert_eq!((stream.status, stream.complete), want, "{label}");
    }
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named_and_so_is_a_crowd() {
    let nothing = Server::with_path("").await;
    let answer = nothing.ask(&Form::new().file(&silence(1)).post()).await;
    assert_eq!(answer.status, 503);
    assert!(answer.error()["message"].as_str().expect("text").contains("apt-get install ffmpeg"));
    let all = u32::try_from(TURNS_MAX + WAITING_MAX).expect("a small number");
    let _crowd = nothing.speaker.room.acquire_many(all).await.expect("an open semaphore");
    let announced = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                     Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 9999\r\n\r\n";
    let mut socket = nothing.send(announced.as_bytes()).await;
    let mut head = vec![0; 13];
    socket.read_exact(&mut head).await.expect("the connection");
    assert_eq!(head, b"HTTP/1.1 503 ", "before the recording is taken in");
}

#[tokio::test]
async fn the_recogniser_gets_its_samples_and_a_second_of_silence() {
    let script = r#"echo "{\"w\":[{\"b\":0,\"d\":1,\"p\":1,\"t\":\"bytes:$(wc -c)\"}]}""#;
    let engine = FakeEngine::new("pocketsphinx", "counts", script);
    let server = Server::with_path(engine.path()).await;
    assert_eq!(server.text_of(Form::new().file(&silence(2))).await, format!("bytes:{}", (2 + 1) * 32_000));
}
