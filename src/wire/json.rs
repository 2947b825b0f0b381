//! A strict reader of one JSON object (RFC 8259) that arrives in pieces and is kept elsewhere.
//!
//! It checks every byte, says where each top-level member's value stands, and refuses what two parsers could read
//! in two ways: a key that stands twice, bytes that are not UTF-8, anything after the end. It keeps no byte of the
//! body but the top-level keys, works in linear time without recursion, and knows no key by name.

use std::borrow::Cow;
use std::collections::HashSet;
use std::mem;
use std::ops::Range;

use serde::Deserialize;

/// How deep arrays and objects may stand in each other; the top-level object is the first.
pub const DEPTH_MAX: u32 = 64;
/// How many members the top-level object may have.
pub const MEMBERS_MAX: usize = 256;
/// How long a top-level key may be, unescaped.
pub const KEY_BYTES_MAX: usize = 1024;

/// One member of the top-level object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its key, unescaped.
    pub key: String,
    /// Where its value stands in the whole body: exact, without white space around it.
    pub value: Range<usize>,
    /// What its value is.
    pub kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

/// Why a body was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not one JSON object, or goes past a limit.
    #[error("{reason} at byte {at}")]
    Syntax {
        /// What is wrong.
        reason: &'static str,
        /// The offset of the offending byte in the whole body.
        at: usize,
    },
    /// Two top-level members have the same key, once unescaped.
    #[error("duplicate key {key:?}")]
    DuplicateKey {
        /// The key, unescaped.
        key: String,
    },
}

/// Reads one JSON object, fed piece by piece.
#[derive(Debug)]
pub struct Scanner {
    /// The offset of the next byte.
    at: usize,
    state: State,
    nesting: Nesting,
    role: Role,
    key: Key,
    seen: HashSet<String>,
    /// The top-level member being read: complete once its value has ended.
    member: Member,
    members: Vec<Member>,
    fault: Option<Fault>,
}

/// Decodes one JSON string as it stands in a body, with its quotes. `None` if it is no string, or holds half a
/// surrogate pair (which the grammar allows, but which no text can hold).
pub fn text(raw: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    let quoted = raw.starts_with(b"\"") && raw.ends_with(b"\"");
    quoted.then(|| serde_json::from_slice::<Text<'_>>(raw).ok()).flatten().map(|Text(text)| text)
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// Waits for the first byte of a body.
    pub fn new() -> Self {
        Self {
            at: 0,
            state: State::Start,
            nesting: Nesting { depth: 0, arrays: 0 },
            role: Role::Value,
            key: Key::default(),
            seen: HashSet::new(),
            member: Member { key: String::new(), value: 0..0, kind: Kind::Null },
            members: Vec::new(),
            fault: None,
        }
    }

    /// Takes the next bytes of the body. After a fault, every further call gives the same one.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        if self.fault.is_none() {
            self.fault = self.scan(chunk).err();
        }
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Ends the body: its top-level members in the order they came, or the reason it is not one JSON object.
    pub fn finish(self) -> Result<Vec<Member>, Fault> {
        match (self.fault, self.state) {
            (Some(fault), _) => Err(fault),
            (None, State::Done) => Ok(self.members),
            (None, _) => Err(syntax("unexpected end", self.at)),
        }
    }

    fn scan(&mut self, mut rest: &[u8]) -> Result<(), Fault> {
        while let Some(&byte) = rest.first() {
            let taken = match self.state {
                State::Text(Text::Plain) => self.plain_text(rest)?,
                State::Text(text) => self.special_text(text, byte)?,
                State::Number(digits) => self.number(digits, byte)?,
                State::Word(left) => self.word(left, byte)?,
                State::Start | State::Mark(_) => self.start(byte)?,
                _ => match rest.iter().take_while(|byte| is_space(**byte)).count() {
                    0 => self.structure(byte)?,
                    spaces => spaces,
                },
            };
            rest = &rest[taken..];
            self.at += taken;
        }
        Ok(())
    }

    /// Before the opening brace. Takes a whole byte order mark before it says so.
    fn start(&mut self, byte: u8) -> Result<usize, Fault> {
        const MARK: &[u8] = b"\xEF\xBB\xBF";
        match (self.state, byte) {
            (State::Start, _) if is_space(byte) => {}
            (State::Start, b'{') => {
                self.nesting.open(Kind::Object, self.at)?;
                self.state = State::FirstKey;
            }
            (State::Start, 0xEF) if self.at == 0 => self.state = State::Mark(&MARK[1..]),
            (State::Mark([next, rest @ ..]), _) if byte == *next => {
                if rest.is_empty() {
                    return Err(syntax("starts with a byte order mark", 0));
                }
                self.state = State::Mark(rest);
            }
            (State::Mark(_), _) => return Err(syntax("not an object", 0)),
            _ => return Err(syntax("not an object", self.at)),
        }
        Ok(1)
    }

    /// A byte between two tokens that is not white space.
    fn structure(&mut self, byte: u8) -> Result<usize, Fault> {
        match (self.state, byte) {
            (State::FirstKey, b'}') | (State::FirstItem, b']') => self.close(),
            (State::FirstKey | State::Key, b'"') => {
                if self.nesting.is_top() && self.members.len() == MEMBERS_MAX {
                    return Err(syntax("too many members", self.at));
                }
                self.role = Role::Key;
                self.state = State::Text(Text::Plain);
            }
            (State::FirstKey | State::Key, _) => return Err(syntax("expected a key", self.at)),
            (State::Colon, b':') => self.state = State::Value,
            (State::Colon, _) => return Err(syntax("expected a colon", self.at)),
            (State::After, b',') => self.state = if self.nesting.in_array() { State::Value } else { State::Key },
            (State::After, b']') if self.nesting.in_array() => self.close(),
            (State::After, b'}') if !self.nesting.in_array() => self.close(),
            (State::After, _) => return Err(syntax("expected a comma or the closing bracket", self.at)),
            (State::Done, _) => return Err(syntax("trailing bytes", self.at)),
            _ => self.value(byte)?,
        }
        Ok(1)
    }

    /// The first byte of a value.
    fn value(&mut self, byte: u8) -> Result<(), Fault> {
        let (kind, state) = match byte {
            b'{' => (Kind::Object, State::FirstKey),
            b'[' => (Kind::Array, State::FirstItem),
            b'"' => (Kind::String, State::Text(Text::Plain)),
            b'-' => (Kind::Number, State::Number(Digits::Minus)),
            b'0' => (Kind::Number, State::Number(Digits::Zero)),
            b'1'..=b'9' => (Kind::Number, State::Number(Digits::Whole)),
            b't' => (Kind::Bool, State::Word(b"rue")),
            b'f' => (Kind::Bool, State::Word(b"alse")),
            b'n' => (Kind::Null, State::Word(b"ull")),
            _ => return Err(syntax("expected a value", self.at)),
        };
        if self.nesting.is_top() {
            self.member.kind = kind;
            self.member.value.start = self.at;
        }
        if matches!(kind, Kind::Array | Kind::Object) {
            self.nesting.open(kind, self.at)?;
        }
        self.role = Role::Value;
        self.state = state;
        Ok(())
    }

    /// The closing bracket of an array or object.
    fn close(&mut self) {
        self.nesting.close();
        match self.nesting.depth {
            0 => self.state = State::Done,
            _ => self.ended(self.at + 1),
        }
    }

    /// A value has ended before the byte at `end`.
    fn ended(&mut self, end: usize) {
        self.state = State::After;
        if self.nesting.is_top() {
            self.member.value.end = end;
            let key = mem::take(&mut self.member.key);
            self.members.push(Member { key, ..self.member.clone() });
        }
    }

    fn word(&mut self, left: &'static [u8], byte: u8) -> Result<usize, Fault> {
        match left {
            [last] if *last == byte => self.ended(self.at + 1),
            [next, rest @ ..] if *next == byte => self.state = State::Word(rest),
            _ => return Err(syntax("expected a value", self.at)),
        }
        Ok(1)
    }

    /// The byte that ends a number is not part of it: it is left to be read again.
    fn number(&mut self, digits: Digits, byte: u8) -> Result<usize, Fault> {
        let next = match (digits, byte) {
            (Digits::Minus, b'0') => Digits::Zero,
            (Digits::Minus, b'1'..=b'9') | (Digits::Whole, b'0'..=b'9') => Digits::Whole,
            (Digits::Zero, b'0'..=b'9') => return Err(syntax("leading zero", self.at)),
            (Digits::Zero | Digits::Whole, b'.') => Digits::Point,
            (Digits::Point | Digits::Fraction, b'0'..=b'9') => Digits::Fraction,
            (Digits::Zero | Digits::Whole | Digits::Fraction, b'e' | b'E') => Digits::Mark,
            (Digits::Mark, b'+' | b'-') => Digits::Sign,
            (Digits::Mark | Digits::Sign | Digits::Exponent, b'0'..=b'9') => Digits::Exponent,
            (Digits::Minus | Digits::Point | Digits::Mark | Digits::Sign, _) => {
                return Err(syntax("expected a digit", self.at));
            }
            (Digits::Zero | Digits::Whole | Digits::Fraction | Digits::Exponent, _) => {
                self.ended(self.at);
                return Ok(0);
            }
        };
        self.state = State::Number(next);
        Ok(1)
    }

    /// Whole characters that stand for themselves, as many as there are; else one byte that needs a closer look.
    fn plain_text(&mut self, rest: &[u8]) -> Result<usize, Fault> {
        let run = match plain_run(rest) {
            0 => wide_run(rest),
            run => run,
        };
        if run > 0 {
            if self.in_top_key() {
                self.key.raw(&rest[..run], self.at)?;
            }
            return Ok(run);
        }
        self.state = State::Text(match rest[0] {
            b'"' => return self.close_text(),
            b'\\' => Text::Escape,
            0..0x20 => return Err(syntax("control character in a string", self.at)),
            first => {
                let (left, low, high) = tail_of(first).ok_or_else(|| syntax(NOT_UTF8, self.at))?;
                if self.in_top_key() {
                    self.key.raw(&[first], self.at)?;
                }
                Text::Tail { left, low, high }
            }
        });
        Ok(1)
    }

    /// A byte inside an escape or a multi-byte character.
    fn special_text(&mut self, text: Text, byte: u8) -> Result<usize, Fault> {
        let next = match (text, byte) {
            (Text::Escape, b'u') => Text::Hex { left: 4, unit: 0 },
            (Text::Escape, _) => {
                let char = unescape(byte).ok_or_else(|| syntax("invalid escape", self.at))?;
                if self.in_top_key() {
                    self.key.char(char, self.at)?;
                }
                Text::Plain
            }
            (Text::Hex { left, unit }, _) => {
                let digit = hex_digit(byte).ok_or_else(|| syntax("invalid escape", self.at))?;
                let unit = unit << 4 | digit;
                if left == 1 && self.in_top_key() {
                    self.key.unit(unit, self.at)?;
                }
                if left == 1 { Text::Plain } else { Text::Hex { left: left - 1, unit } }
            }
            (Text::Tail { left, low, high }, _) if (low..=high).contains(&byte) => {
                if self.in_top_key() {
                    self.key.raw(&[byte], self.at)?;
                }
                if left == 1 { Text::Plain } else { Text::Tail { left: left - 1, low: 0x80, high: 0xBF } }
            }
            (Text::Tail { .. } | Text::Plain, _) => return Err(syntax(NOT_UTF8, self.at)),
        };
        self.state = State::Text(next);
        Ok(1)
    }

    /// The closing quote.
    fn close_text(&mut self) -> Result<usize, Fault> {
        if self.in_top_key() {
            let key = self.key.take(self.at)?;
            if !self.seen.insert(key.clone()) {
                return Err(Fault::DuplicateKey { key });
            }
            self.member.key = key;
        }
        match self.role {
            Role::Key => self.state = State::Colon,
            Role::Value => self.ended(self.at + 1),
        }
        Ok(1)
    }

    fn in_top_key(&self) -> bool {
        self.role == Role::Key && self.nesting.is_top()
    }
}

const NOT_UTF8: &str = "invalid UTF-8";

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing has come but white space.
    Start,
    /// In what may be a byte order mark, of which this is left.
    Mark(&'static [u8]),
    /// After an opening brace: a key or the closing brace.
    FirstKey,
    /// After a comma in an object.
    Key,
    Colon,
    /// After an opening bracket: a value or the closing bracket.
    FirstItem,
    Value,
    /// After a value: a comma or the closing bracket.
    After,
    /// In `true`, `false` or `null`, of which this is left.
    Word(&'static [u8]),
    Number(Digits),
    Text(Text),
    /// After the closing brace of the document.
    Done,
}

/// What the number read so far ends with.
#[derive(Debug, Clone, Copy)]
enum Digits {
    Minus,
    /// A whole part that is just `0`.
    Zero,
    Whole,
    Point,
    Fraction,
    /// The `e`.
    Mark,
    Sign,
    Exponent,
}

/// Where in a string the next byte stands.
#[derive(Debug, Clone, Copy)]
enum Text {
    Plain,
    /// After a backslash.
    Escape,
    /// In the digits of `\u`.
    Hex {
        left: u8,
        unit: u16,
    },
    /// In a multi-byte character: so many bytes are left, the next of them in these bounds.
    Tail {
        left: usize,
        low: u8,
        high: u8,
    },
}

/// What the string being read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Key,
    Value,
}

/// The arrays and objects that are open.
#[derive(Debug)]
struct Nesting {
    depth: u32,
    /// A bit for each level, the innermost lowest: 1 for an array.
    arrays: u64,
}

const _: () = assert!(DEPTH_MAX <= u64::BITS, "every level has a bit");

impl Nesting {
    fn open(&mut self, kind: Kind, at: usize) -> Result<(), Fault> {
        if self.depth == DEPTH_MAX {
            return Err(syntax("nested too deeply", at));
        }
        self.depth += 1;
        self.arrays = self.arrays << 1 | u64::from(kind == Kind::Array);
        Ok(())
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.arrays >>= 1;
    }

    fn in_array(&self) -> bool {
        self.arrays & 1 == 1
    }

    /// Directly in the top-level object.
    fn is_top(&self) -> bool {
        self.depth == 1
    }
}

/// A top-level key, unescaped while it is read.
#[derive(Debug, Default)]
struct Key {
    bytes: Vec<u8>,
    /// The first half of a surrogate pair, and where its escape began.
    half: Option<(u16, usize)>,
}

impl Key {
    /// Bytes that stand for themselves, the first of them at `at`.
    fn raw(&mut self, run: &[u8], at: usize) -> Result<(), Fault> {
        self.no_half()?;
        let room = KEY_BYTES_MAX - self.bytes.len();
        if run.len() > room {
            return Err(syntax("key too long", at + room));
        }
        self.bytes.extend_from_slice(run);
        Ok(())
    }

    /// An escaped character, whose escape ends at `at`.
    fn char(&mut self, char: char, at: usize) -> Result<(), Fault> {
        self.no_half()?;
        if self.bytes.len() + char.len_utf8() > KEY_BYTES_MAX {
            return Err(syntax("key too long", at));
        }
        self.bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    /// A `\u` escape, whose last digit is at `at`.
    fn unit(&mut self, unit: u16, at: usize) -> Result<(), Fault> {
        let start = at - r"\u000".len();
        let scalar = match (self.half, unit) {
            (None, 0xD800..=0xDBFF) => {
                self.half = Some((unit, start));
                return Ok(());
            }
            (Some((first, _)), 0xDC00..=0xDFFF) => {
                self.half = None;
                0x10000 + (u32::from(first & 0x3FF) << 10 | u32::from(unit & 0x3FF))
            }
            _ => u32::from(unit),
        };
        self.no_half()?;
        let char = char::from_u32(scalar).ok_or_else(|| syntax(LONE, start))?;
        self.char(char, at)
    }

    /// The whole key; its closing quote is at `at`.
    fn take(&mut self, at: usize) -> Result<String, Fault> {
        self.no_half()?;
        String::from_utf8(mem::take(&mut self.bytes)).map_err(|_| syntax(NOT_UTF8, at))
    }

    fn no_half(&self) -> Result<(), Fault> {
        self.half.map_or(Ok(()), |(_, at)| Err(syntax(LONE, at)))
    }
}

const LONE: &str = "half a surrogate pair in a key";

fn syntax(reason: &'static str, at: usize) -> Fault {
    Fault::Syntax { reason, at }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// What a backslash and this byte stand for.
fn unescape(byte: u8) -> Option<char> {
    Some(match byte {
        b'"' | b'\\' | b'/' => char::from(byte),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        _ => return None,
    })
}

fn hex_digit(byte: u8) -> Option<u16> {
    char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok())
}

/// How many bytes at the start are plain: ASCII, but no control character, quote or backslash. Chat bodies carry
/// megabytes of base64 here, so whole blocks are looked at first, in a form that compiles to vector instructions.
fn plain_run(bytes: &[u8]) -> usize {
    const BLOCK: usize = 32;
    let is_plain = |&byte: &u8| (0x20..0x80).contains(&byte) & (byte != b'"') & (byte != b'\\');
    if !bytes.first().is_some_and(is_plain) {
        return 0;
    }
    let all_plain = |block: &&[u8]| block.iter().fold(true, |plain, byte| plain & is_plain(byte));
    let blocks = bytes.chunks_exact(BLOCK).take_while(all_plain).count() * BLOCK;
    blocks + bytes[blocks..].iter().take_while(|byte| is_plain(byte)).count()
}

/// How many bytes at the start are whole characters of more than one byte each.
fn wide_run(bytes: &[u8]) -> usize {
    let mut run = 0;
    while let [first, second, rest @ ..] = &bytes[run..]
        && let Some((left, low, high)) = tail_of(*first)
        && (low..=high).contains(second)
        && rest.iter().take(left - 1).filter(|byte| (0x80..=0xBF).contains(*byte)).count() == left - 1
    {
        run += 1 + left;
    }
    run
}

/// How many bytes follow the first of a multi-byte character, and the bounds of the next of them: the well-formed
/// sequences of the Unicode Standard, table 3-7. All later ones are 80 to BF.
fn tail_of(first: u8) -> Option<(usize, u8, u8)> {
    Some(match first {
        0xC2..=0xDF => (1, 0x80, 0xBF),
        0xE0 => (2, 0xA0, 0xBF),
        0xE1..=0xEC | 0xEE..=0xEF => (2, 0x80, 0xBF),
        0xED => (2, 0x80, 0x9F),
        0xF0 => (3, 0x90, 0xBF),
        0xF1..=0xF3 => (3, 0x80, 0xBF),
        0xF4 => (3, 0x80, 0x8F),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde::de::{IgnoredAny, MapAccess, Visitor};
    use serde_json::{Map, Value};

    use super::*;
    use crate::wire::testing::{pieces, same_however_cut};

    fn run(pieces: &[&[u8]]) -> Result<Vec<Member>, Fault> {
        let mut scanner = Scanner::new();
        // Whatever is pushed after a fault, the fault stays.
        let pushed: Vec<_> = pieces.iter().filter_map(|piece| scanner.push(piece).err()).collect();
        let end = scanner.finish();
        assert!(pushed.iter().all(|fault| end.as_ref() == Err(fault)), "{pushed:?}, then {end:?}");
        end
    }

    #[test]
    fn members_are_found_where_they_stand() {
        use Kind::{Array, Bool, Null, Number, Object, String};
        for (label, input, want) in [
            ("empty", "{}", &[][..]),
            ("empty, with space around", " \t\r\n{ \t\r\n} \t\r\n", &[]),
            ("string", r#"{"model":"tts-1"}"#, &[("model", r#""tts-1""#, String)]),
            ("space is not in the span", "{ \"a\" : 1 \n, \"b\" :\t[ ] }", &[("a", "1", Number), ("b", "[ ]", Array)]),
            (
                "words",
                r#"{"a":null,"b":true,"c":false}"#,
                &[("a", "null", Null), ("b", "true", Bool), ("c", "false", Bool)],
            ),
            ("number before a brace", r#"{"a":-0.5e+10}"#, &[("a", "-0.5e+10", Number)]),
            ("zeros", r#"{"a":0,"b":-0,"c":0e0}"#, &[("a", "0", Number), ("b", "-0", Number), ("c", "0e0", Number)]),
            ("a number nobody can hold", r#"{"a":1E999999}"#, &[("a", "1E999999", Number)]),
            ("same key deeper", r#"{"a":{"a":{"a":1,"a":2}}}"#, &[("a", r#"{"a":{"a":1,"a":2}}"#, Object)]),
            ("brackets in strings", r#"{"a":["}","]","\"]"]}"#, &[("a", r#"["}","]","\"]"]"#, Array)]),
            ("mixed nesting", r#"{"a":[{"b":[[],{}]}]}"#, &[("a", r#"[{"b":[[],{}]}]"#, Array)]),
            ("empty key", r#"{"":""}"#, &[("", r#""""#, String)]),
            ("escaped key", r#"{"\"\\\/\b\f\n\r\t":1}"#, &[("\"\\/\u{8}\u{c}\n\r\t", "1", Number)]),
            ("hex in a key", r#"{"mod\u0065l\u00e9\u20AC":1}"#, &[("modelé€", "1", Number)]),
            ("pair in a key", r#"{"\ud83d\uDE00":1}"#, &[("😀", "1", Number)]),
            ("text in a key", "{\"é€😀\":1}", &[("é€😀", "1", Number)]),
            ("keys by case", r#"{"a":1,"A":2}"#, &[("a", "1", Number), ("A", "2", Number)]),
            (
                "half a pair in a value",
                r#"{"a":"\ud800","b":"\udc00\ud800x"}"#,
                &[("a", r#""\ud800""#, String), ("b", r#""\udc00\ud800x""#, String)],
            ),
            ("half a pair in a deeper key", r#"{"a":{"\ud800":1}}"#, &[("a", r#"{"\ud800":1}"#, Object)]),
            (
                "bounds of UTF-8",
                "{\"a\":\"\u{7f}\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}\"}",
                &[("a", "\"\u{7f}\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}\"", String)],
            ),
        ] {
            let members = run(&[input.as_bytes()]).expect(label);
            let found: Vec<_> = members.iter().map(|m| (m.key.as_str(), &input[m.value.clone()], m.kind)).collect();
            assert_eq!(found, want, "{label}");
            same_however_cut(input.as_bytes(), run);
        }
    }

    fn assert_refused(table: &[(&str, &[u8], &'static str, usize)]) {
        for &(label, input, reason, at) in table {
            assert_eq!(run(&[input]), Err(syntax(reason, at)), "{label}");
            same_however_cut(input, run);
        }
    }

    #[test]
    fn a_body_that_is_not_one_object_is_refused() {
        assert_refused(&[
            ("nothing", b"", "unexpected end", 0),
            ("only space", b" \n", "unexpected end", 2),
            ("cut after the brace", b"{", "unexpected end", 1),
            ("cut in a key", b"{\"a", "unexpected end", 3),
            ("cut after a key", b"{\"a\"", "unexpected end", 4),
            ("cut after the colon", b"{\"a\":", "unexpected end", 5),
            ("cut in a number", b"{\"a\":1", "unexpected end", 6),
            ("cut in a word", b"{\"a\":tru", "unexpected end", 8),
            ("cut in a value", b"{\"a\":[{}", "unexpected end", 8),
            ("array", b"[]", "not an object", 0),
            ("string", b" \"a\"", "not an object", 1),
            ("number", b"1", "not an object", 0),
            ("word", b"null", "not an object", 0),
            ("NUL", b"\0{}", "not an object", 0),
            ("form feed", b"\x0c{}", "not an object", 0),
            ("byte order mark", b"\xEF\xBB\xBF{}", "starts with a byte order mark", 0),
            ("most of a byte order mark", b"\xEF\xBB\xBE{}", "not an object", 0),
            ("half a byte order mark", b"\xEF\xBB", "unexpected end", 2),
            ("byte order mark after space", b" \xEF\xBB\xBF{}", "not an object", 1),
            ("byte order mark inside", b"{\xEF\xBB\xBF}", "expected a key", 1),
            ("byte order mark after", b"{}\xEF\xBB\xBF", "trailing bytes", 2),
            ("UTF-16", b"\xFF\xFE{\0}\0", "not an object", 0),
            ("UTF-16 without a mark", b"{\0}\0", "expected a key", 1),
            ("two documents", b"{} {}", "trailing bytes", 3),
            ("trailing bracket", b"{}}", "trailing bytes", 2),
            ("trailing NUL", b"{}\0", "trailing bytes", 2),
            ("comment", b"{/**/}", "expected a key", 1),
            ("comment before", b"//\n{}", "not an object", 0),
            ("comment in a value", b"{\"a\":1//\n}", "expected a comma or the closing bracket", 6),
            ("single quotes", b"{'a':1}", "expected a key", 1),
            ("bare key", b"{a:1}", "expected a key", 1),
            ("number as a key", b"{1:1}", "expected a key", 1),
            ("only a comma", b"{,}", "expected a key", 1),
            ("trailing comma", b"{\"a\":1,}", "expected a key", 7),
            ("trailing comma in an array", b"{\"a\":[1,]}", "expected a value", 8),
            ("two commas", b"{\"a\":[1,,2]}", "expected a value", 8),
            ("leading comma in an array", b"{\"a\":[,1]}", "expected a value", 6),
            ("no colon", b"{\"a\" 1}", "expected a colon", 5),
            ("no value", b"{\"a\":}", "expected a value", 5),
            ("no comma", b"{\"a\":1 2}", "expected a comma or the closing bracket", 7),
            ("no comma after text", b"{\"a\":\"b\"\"c\":1}", "expected a comma or the closing bracket", 8),
            ("object closed as an array", b"{]", "expected a key", 1),
            ("array closed as an object", b"{\"a\":[}", "expected a value", 6),
            ("array closed as an object, later", b"{\"a\":[1}", "expected a comma or the closing bracket", 7),
            ("object closed as an array, later", b"{\"a\":1]", "expected a comma or the closing bracket", 6),
        ]);
    }

    #[test]
    fn a_token_that_is_not_json_is_refused() {
        assert_refused(&[
            ("NaN", b"{\"a\":NaN}", "expected a value", 5),
            ("Infinity", b"{\"a\":Infinity}", "expected a value", 5),
            ("-Infinity", b"{\"a\":-Infinity}", "expected a digit", 6),
            ("misspelt", b"{\"a\":nul1}", "expected a value", 8),
            ("upper case", b"{\"a\":True}", "expected a value", 5),
            ("too long a word", b"{\"a\":nulll}", "expected a comma or the closing bracket", 9),
            ("plus", b"{\"a\":+1}", "expected a value", 5),
            ("leading zero", b"{\"a\":01}", "leading zero", 6),
            ("leading zero after minus", b"{\"a\":-00}", "leading zero", 7),
            ("only a minus", b"{\"a\":-}", "expected a digit", 6),
            ("no whole part", b"{\"a\":.5}", "expected a value", 5),
            ("no fraction", b"{\"a\":1.}", "expected a digit", 7),
            ("no exponent", b"{\"a\":1e}", "expected a digit", 7),
            ("no exponent after its sign", b"{\"a\":1e+}", "expected a digit", 8),
            ("two points", b"{\"a\":1.2.3}", "expected a comma or the closing bracket", 8),
            ("hexadecimal", b"{\"a\":0x1}", "expected a comma or the closing bracket", 6),
            ("line feed in text", b"{\"a\":\"\n\"}", "control character in a string", 6),
            ("NUL in a key", b"{\"a\0\":1}", "control character in a string", 3),
            ("last control character", b"{\"a\":\"b\x1f\"}", "control character in a string", 7),
            ("unknown escape", b"{\"a\":\"\\x41\"}", "invalid escape", 7),
            ("upper-case escape", b"{\"a\":\"\\U0041\"}", "invalid escape", 7),
            ("short hex", b"{\"a\":\"\\u004\"}", "invalid escape", 11),
            ("bad hex", b"{\"a\":\"\\u00g0\"}", "invalid escape", 10),
            ("signed hex", b"{\"a\":\"\\u+041\"}", "invalid escape", 8),
            ("overlong slash", b"{\"a\":\"\xC0\xAF\"}", NOT_UTF8, 6),
            ("overlong, two bytes", b"{\"a\":\"\xC1\xBF\"}", NOT_UTF8, 6),
            ("overlong, three bytes", b"{\"a\":\"\xE0\x9F\xBF\"}", NOT_UTF8, 7),
            ("overlong, four bytes", b"{\"a\":\"\xF0\x8F\xBF\xBF\"}", NOT_UTF8, 7),
            ("surrogate", b"{\"a\":\"\xED\xA0\x80\"}", NOT_UTF8, 7),
            ("past U+10FFFF", b"{\"a\":\"\xF4\x90\x80\x80\"}", NOT_UTF8, 7),
            ("five bytes", b"{\"a\":\"\xF8\x88\x80\x80\x80\"}", NOT_UTF8, 6),
            ("lone tail", b"{\"a\":\"\x80\"}", NOT_UTF8, 6),
            ("cut character", b"{\"a\":\"\xE2\x82\"}", NOT_UTF8, 8),
            ("Latin-1 in a key", b"{\"\xE9\":1}", NOT_UTF8, 3),
            ("high half in a key", b"{\"a\\ud800\":1}", LONE, 3),
            ("high half before text", b"{\"\\ud800b\":1}", LONE, 2),
            ("high half before an escape", b"{\"\\ud800\\n\":1}", LONE, 2),
            ("high half before a character", b"{\"\\ud800\xC3\xA9\":1}", LONE, 2),
            ("high half before a plain \\u", b"{\"\\ud800\\u0041\":1}", LONE, 2),
            ("halves parted by text", b"{\"\\ud800b\\udc00\":1}", LONE, 2),
            ("halves parted by an escape", b"{\"\\ud800\\n\\udc00\":1}", LONE, 2),
            ("two high halves", b"{\"\\ud800\\ud800\\udc00\":1}", LONE, 2),
            ("low half", b"{\"a\\udc00\":1}", LONE, 3),
        ]);
    }

    #[test]
    fn a_plain_run_ends_at_the_first_byte_that_is_not() {
        for byte in 0..=u8::MAX {
            let is_plain = byte.is_ascii() && byte >= b' ' && !b"\"\\".contains(&byte);
            for at in 0..80 {
                let mut bytes = [b'x'; 80];
                bytes[at] = byte;
                assert_eq!(plain_run(&bytes), if is_plain { 80 } else { at }, "{byte:#x} at {at}");
            }
        }
    }

    #[test]
    fn a_top_level_key_stands_once() {
        for (label, input, key) in [
            ("plain", r#"{"model":"a","input":"b","model":"a"}"#, "model"),
            ("escaped", r#"{"model":"a","mod\u0065l":"b"}"#, "model"),
            ("escaped first", r#"{"\u006dodel":"a","model":"b"}"#, "model"),
            ("empty", r#"{"":1,"":2}"#, ""),
            ("pair", r#"{"😀":1,"\ud83d\ude00":2}"#, "😀"),
            ("known before its value", r#"{"a":1,"a""#, "a"),
            ("known before a later fault", r#"{"a":1,"a"!"#, "a"),
        ] {
            assert_eq!(run(&[input.as_bytes()]), Err(Fault::DuplicateKey { key: key.into() }), "{label}");
            same_however_cut(input.as_bytes(), run);
        }
    }

    #[test]
    fn every_limit_holds_and_is_reached() {
        let members = |count: usize| {
            let members: Vec<_> = (0..count).map(|n| format!("\"{n:03}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        let key = |key: String| format!("{{\"{key}\":0}}");
        let deep = |depth: u32| {
            let arrays = depth as usize - 1;
            format!("{{\"a\":{}{}}}", "[".repeat(arrays), "]".repeat(arrays))
        };
        let too_long = |at| Some(syntax("key too long", at));
        for (label, input, want) in [
            ("members", members(MEMBERS_MAX), None),
            ("one member more", members(MEMBERS_MAX + 1), Some(syntax("too many members", 1 + MEMBERS_MAX * 8))),
            ("key", key("k".repeat(KEY_BYTES_MAX)), None),
            ("key, one more", key("k".repeat(KEY_BYTES_MAX + 1)), too_long(2 + KEY_BYTES_MAX)),
            ("escapes", key(r"\u00e9".repeat(KEY_BYTES_MAX / 2)), None),
            ("escapes, one more", key(r"\u00e9".repeat(KEY_BYTES_MAX / 2) + r"\n"), too_long(3 + KEY_BYTES_MAX * 3)),
            ("characters", key("é".repeat(KEY_BYTES_MAX / 2)), None),
            ("characters, half of one more", key("é".repeat(KEY_BYTES_MAX / 2) + "é"), too_long(2 + KEY_BYTES_MAX)),
            ("depth", deep(DEPTH_MAX), None),
            ("one level more", deep(DEPTH_MAX + 1), Some(syntax("nested too deeply", 5 + 63))),
            ("deeper key of any length", format!("{{\"a\":{}}}", key("k".repeat(9 * KEY_BYTES_MAX))), None),
        ] {
            assert_eq!(run(&[input.as_bytes()]).err(), want, "{label}");
            assert_eq!(run(&input.as_bytes().chunks(1).collect::<Vec<_>>()).err(), want, "{label}, byte by byte");
        }
    }

    /// The answer comes at the level that is one too many: what follows is not even looked at.
    #[test]
    fn nesting_without_end_is_refused_at_once() {
        for (label, opening) in [("arrays", "["), ("objects", r#"{"a":"#)] {
            let input = format!(r#"{{"a":{}"#, opening.repeat(100_000));
            let at = 5 + 63 * opening.len();
            assert_eq!(run(&[input.as_bytes()]), Err(syntax("nested too deeply", at)), "{label}");
        }
    }

    /// Every first byte, with what may follow on and around every bound of the Unicode Standard's table 3-7.
    #[test]
    fn characters_are_judged_as_by_the_standard_library() {
        const SECOND: &[u8] = b"\x41\x7F\x80\x8F\x90\x9F\xA0\xBF\xC0\xFF";
        const LATER: &[&[u8]] = &[b"", b"\x7F", b"\x80", b"\xBF", b"\xC0", b"\x80\x80", b"\xBF\xBF", b"\xBF\xC0"];
        for first in 0x80..=u8::MAX {
            for (second, later) in SECOND.iter().flat_map(|second| LATER.iter().map(move |later| (second, later))) {
                let input = [b"{\"\":\"", &[first, *second][..], later, b"\"}"].concat();
                let want = std::str::from_utf8(&input).is_ok();
                assert_eq!(run(&[&input]).is_ok(), want, "{input:x?}");
                assert_eq!(run(&input.chunks(1).collect::<Vec<_>>()).is_ok(), want, "{input:x?}, byte by byte");
            }
        }
    }

    #[test]
    fn text_is_decoded_or_refused() {
        for (label, raw, want) in [
            ("plain", &br#""tts-1""#[..], Some("tts-1")),
            ("empty", br#""""#, Some("")),
            ("escapes", br#""\u0041\n\ud83d\ude00""#, Some("A\n😀")),
            ("half a pair", br#""\ud800""#, None),
            ("other half", br#""a\udc00""#, None),
            ("number", b"1", None),
            ("array of text", br#"["a"]"#, None),
            ("null", b"null", None),
            ("nothing", b"", None),
            ("one quote", b"\"", None),
            ("two strings", br#""a" "b""#, None),
            ("space around", br#" "a" "#, None),
            ("not UTF-8", b"\"\xC0\xAF\"", None),
        ] {
            assert_eq!(text(raw).as_deref(), want, "{label}");
        }
        assert!(matches!(text(br#""tts-1""#), Some(Cow::Borrowed("tts-1"))), "nothing to unescape, nothing to copy");
    }

    /// The keys of an object as `serde_json` sees them: duplicates kept, values checked but not held, so that its
    /// own limits on numbers and depth play no part.
    struct Keys(Vec<String>);

    impl<'de> Deserialize<'de> for Keys {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Entries;
            impl<'de> Visitor<'de> for Entries {
                type Value = Keys;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                    let mut keys = Vec::new();
                    while let Some((key, IgnoredAny)) = map.next_entry()? {
                        keys.push(key);
                    }
                    Ok(Keys(keys))
                }
            }
            deserializer.deserialize_map(Entries)
        }
    }

    /// The scanner accepts what `serde_json` accepts, but for its own limits and duplicates.
    fn agrees_with_serde_json(input: &[u8]) {
        let theirs = std::str::from_utf8(input).ok().and_then(|input| serde_json::from_str(input).ok());
        match (run(&[input]), theirs) {
            (Ok(members), Some(Keys(keys))) => {
                assert_eq!(
                    members.iter().map(|member| &member.key).collect::<Vec<_>>(),
                    keys.iter().collect::<Vec<_>>()
                );
            }
            (Err(Fault::DuplicateKey { key }), Some(Keys(keys))) => {
                assert!(keys.iter().filter(|other| **other == key).count() > 1, "{key:?} is not there twice");
            }
            (Err(Fault::Syntax { reason, .. }), Some(_)) => {
                assert!(["nested too deeply", "too many members", "key too long"].contains(&reason), "{reason}");
            }
            (Ok(_), None) => panic!("accepted, though serde_json does not"),
            (Err(_), None) => {}
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 24, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    /// An object as text, written as loosely as the grammar allows: white space around tokens, letters escaped.
    fn any_object() -> impl Strategy<Value = String> {
        let members = btree_map(any::<String>(), any_value(), 0..5);
        (members, vec(any::<u8>(), 1..32)).prop_map(|(members, dice)| {
            let tight = Value::from(members.into_iter().collect::<Map<_, _>>()).to_string();
            let mut dice = dice.into_iter().cycle();
            let mut roll = || dice.next().unwrap_or_default();
            let (mut loose, mut in_text, mut escaped) = (String::new(), false, false);
            for char in tight.chars() {
                let spaces = ["", "", " ", "\n", "\t \r\n"];
                let mut space = || spaces[usize::from(roll()) % spaces.len()];
                match char {
                    '{' | '}' | '[' | ']' | ',' | ':' if !in_text => {
                        loose.extend([space(), &char.to_string(), space()])
                    }
                    'g'..='z' if in_text && !escaped && roll() % 4 == 0 => {
                        loose.push_str(&format!("\\u{:04X}", u32::from(char)));
                    }
                    _ => loose.push(char),
                }
                in_text ^= char == '"' && !escaped;
                escaped = in_text && char == '\\' && !escaped;
            }
            loose
        })
    }

    fn kind_of(value: &Value) -> Kind {
        match value {
            Value::Null => Kind::Null,
            Value::Bool(_) => Kind::Bool,
            Value::Number(_) => Kind::Number,
            Value::String(_) => Kind::String,
            Value::Array(_) => Kind::Array,
            Value::Object(_) => Kind::Object,
        }
    }

    proptest! {
        #[test]
        fn any_object_is_read_as_serde_json_reads_it(object in any_object(), sizes in vec(0..9_usize, 0..6)) {
            let want: Map<String, Value> = serde_json::from_str(&object).expect("it is JSON");
            let members = run(&pieces(object.as_bytes(), &sizes)).expect("it is JSON");
            prop_assert_eq!(members.len(), want.len());
            for Member { key, value, kind } in members {
                let raw = &object[value];
                let value: Value = serde_json::from_str(raw).expect("a span is a value");
                prop_assert_eq!(raw.trim(), raw);
                prop_assert_eq!(kind, kind_of(&value));
                prop_assert_eq!(text(raw.as_bytes()), value.as_str().map(Cow::from));
                prop_assert_eq!(Some(&value), want.get(&key));
            }
        }

        #[test]
        fn a_damaged_object_is_judged_as_by_serde_json(
            object in any_object(),
            (at, bytes, dropped) in (any::<prop::sample::Index>(), vec(any::<u8>(), 0..3), 0..3_usize),
        ) {
            let mut input = object.into_bytes();
            let at = at.index(input.len());
            input.splice(at..input.len().min(at + dropped), bytes);
            agrees_with_serde_json(&input);
        }

        #[test]
        fn a_heap_of_tokens_is_judged_as_by_serde_json(
            tokens in vec(prop::sample::select(TOKENS), 0..12),
        ) {
            let input = [&b"{\"a\":"[..], &tokens.concat(), b"}"].concat();
            agrees_with_serde_json(&input);
            same_however_cut(&input, run);
        }

        #[test]
        fn any_bytes_are_judged_as_by_serde_json(
            bytes in vec(any::<u8>(), 0..48),
        ) {
            agrees_with_serde_json(&bytes);
            same_however_cut(&bytes, run);
            let input = [b"{\"a\":\"", &bytes[..], b"\"}"].concat();
            agrees_with_serde_json(&input);
            same_however_cut(&input, run);
        }
    }

    const TOKENS: &[&[u8]] = &[
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b" ",
        b"\"",
        b"\"a\"",
        b"\"\\u0061\"",
        b"\"\\ud83d",
        b"\\ude00\"",
        b"\"b\":",
        b",\"c\":",
        b"\\",
        b"0",
        b"1",
        b"-",
        b".",
        b"e",
        b"+",
        b"null",
        b"true",
        b"false",
        b"\xC3",
        b"\xA9",
        b"\xE2\x82\xAC",
    ];
}
