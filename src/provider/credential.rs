//! Where a provider's credential stands in a request.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::units::Secret;

/// What stands as it is in a query: RFC 3986's unreserved characters.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where a credential stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// `name: scheme key`, or the key alone where the scheme is empty.
    Header { name: HeaderName, scheme: Cow<'static, str> },
    /// `?name=key`.
    Query { name: String },
}

/// A credential as it is sent. It prints nothing: it holds the key.
#[derive(Clone, PartialEq)]
pub enum Credential {
    Header(HeaderName, HeaderValue),
    /// A pair of the query, encoded.
    Query(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential")
    }
}

/// A text as it stands in a query.
fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// How a key may come back in an answer: as it is, and as others encode it.
pub fn spellings(key: &Secret) -> Vec<Secret> {
    let upper = encoded(key.expose());
    let mut lower = upper.clone();
    for (at, _) in upper.match_indices('%') {
        let digits = at + 1..at + 3;
        lower.replace_range(digits.clone(), &upper[digits].to_ascii_lowercase());
    }
    let mut spellings = vec![key.clone()];
    for text in [upper, lower] {
        if spellings.iter().all(|known| known.expose() != text) {
            spellings.extend(Secret::new(text));
        }
    }
    spellings
}

impl Placement {
    pub fn header(name: HeaderName, scheme: &'static str) -> Self {
        Self::Header { name, scheme: scheme.into() }
    }

    /// Whether it stands in the query, under this name.
    pub fn is_query(&self, name: &str) -> bool {
        matches!(self, Self::Query { name: own } if own.eq_ignore_ascii_case(name))
    }

    /// The credential of a key. `None`: the key cannot stand there.
    pub fn sign(&self, key: &Secret) -> Option<Credential> {
        match self {
            Self::Header { name, scheme } => {
                let space = if scheme.is_empty() { "" } else { " " };
                let mut value = HeaderValue::try_from(format!("{scheme}{space}{}", key.expose())).ok()?;
                // No `Debug` prints it.
                value.set_sensitive(true);
                Some(Credential::Header(name.clone(), value))
            }
            Self::Query { name } => Some(Credential::Query(format!("{}={}", encoded(name), encoded(key.expose())))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_in_every_spelling_of_its_own() {
        for (key, want) in [("sk-a_b.c~1", &["sk-a_b.c~1"][..]), ("a/Bé", &["a/Bé", "a%2FB%C3%A9", "a%2fB%c3%a9"])] {
            let spellings = spellings(&Secret::new(key).expect("not empty"));
            assert_eq!(spellings.iter().map(Secret::expose).collect::<Vec<_>>(), want);
        }
    }

    #[test]
    fn a_key_stands_where_it_is_said_and_nowhere_else() {
        let key = |text| Secret::new(text).expect("not empty");
        let name = HeaderName::from_static("x-key");
        for (scheme, want) in [("Token", "Token k"), ("", "k")] {
            let Some(Credential::Header(header, value)) = Placement::header(name.clone(), scheme).sign(&key("k"))
            else {
                unreachable!("a header");
            };
            assert_eq!((header.as_str(), value.as_bytes()), ("x-key", want.as_bytes()));
            assert!(value.is_sensitive());
        }
        assert_eq!(Placement::header(name, "").sign(&key("line\nbreak")), None, "a key cannot smuggle a header");
        let query = Placement::Query { name: "api key".to_owned() }.sign(&key("a&b=c#"));
        assert!(query == Some(Credential::Query("api%20key=a%26b%3Dc%23".to_owned())), "nor a pair");
        assert_eq!(format!("{query:?}"), "Some(Credential)");
    }
}
