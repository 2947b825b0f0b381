//! What separates the parts of a form: the `boundary` of its Content-Type.

use super::params::{Param, Params, assignments, is_token, keeps_ascii};

/// The boundary of a form, without the dashes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundary(String);

/// Why a Content-Type does not announce a form that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BoundaryFault {
    /// It announces something else.
    #[error("the media type is not multipart/form-data")]
    NotMultipart,
    /// It does not say what separates the parts.
    #[error("Content-Type has no boundary")]
    Missing,
    /// It is malformed, or can be read in two ways; what is wrong.
    #[error("{0}")]
    Invalid(&'static str),
}

use BoundaryFault::Invalid;

/// RFC 2046 §5.1.1.
const BOUNDARY_BYTES_MAX: usize = 70;

impl Boundary {
    /// Reads the value of a Content-Type header.
    ///
    /// Clients do not quote: a value without quotes may have every byte of a boundary but space and comma. Other
    /// parameters are ignored, except for a charset in which names would not be ASCII.
    pub fn parse(content_type: &str) -> Result<Self, BoundaryFault> {
        let header = content_type.as_bytes();
        let (media, params) =
            Params::split(header, |byte| is_token(byte) || (is_boundary(byte) && byte != b' ' && byte != b','));
        if !media.eq_ignore_ascii_case(b"multipart/form-data") {
            return Err(BoundaryFault::NotMultipart);
        }
        if content_type.contains('\\') {
            return Err(Invalid("a backslash, which not everyone reads as an escape"));
        }
        let mut boundary = None;
        for param in params {
            let param = param.map_err(Invalid)?;
            if param.name.eq_ignore_ascii_case(b"boundary") {
                boundary = Some(param);
            } else if param.name.eq_ignore_ascii_case(b"charset") && !keeps_ascii(param.value) {
                return Err(Invalid("the charset of the form is not one of ASCII and its extensions"));
            }
        }
        match (boundary, assignments(header, "boundary")) {
            (Some(param), 1) => Self::from_param(param),
            (None, 0) => Err(BoundaryFault::Missing),
            _ => Err(Invalid("the boundary can be read in more than one way")),
        }
    }

    /// Its text, 1 to 70 bytes of ASCII.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_param(param: Param<'_>) -> Result<Self, BoundaryFault> {
        let text = param.value;
        if text.is_empty() || text.len() > BOUNDARY_BYTES_MAX {
            return Err(Invalid("the boundary is not 1 to 70 bytes long"));
        }
        if text.trim_ascii() != text {
            return Err(Invalid("the boundary begins or ends with a space"));
        }
        let text = str::from_utf8(text).ok().filter(|text| text.bytes().all(is_boundary));
        text.map(|text| Self(text.to_owned())).ok_or(Invalid("the boundary has a byte that may not stand there"))
    }
}

/// RFC 2046 §5.1.1: `bchars`.
fn is_boundary(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte)
}
