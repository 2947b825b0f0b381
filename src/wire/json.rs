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
mod tests;
