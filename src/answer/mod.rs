//! What the gateway answers itself: models and voices, as the caller may see them, and health.

use bytes::Bytes;

pub mod catalog;

/// A JSON answer of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

impl Answer {
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { status, body: body.to_string().into() }
    }

    /// The same with one more member, where the body is an object.
    #[must_use]
    pub fn with(self, name: &str, value: serde_json::Value) -> Self {
        match serde_json::from_slice(&self.body) {
            Ok(serde_json::Value::Object(mut members)) => {
                members.insert(name.to_owned(), value);
                Self::json(self.status, &members.into())
            }
            _ => self,
        }
    }

    /// `/livez`: the process answers.
    pub fn live() -> Self {
        Self::json(200, &serde_json::json!({ "status": "ok" }))
    }

    /// `/readyz`: requests would be served. Each check says its name and whether it holds.
    pub fn ready(checks: &[(&'static str, bool)]) -> Self {
        let all = checks.iter().all(|(_, holds)| *holds);
        let checks: serde_json::Map<_, _> =
            checks.iter().map(|(name, holds)| ((*name).to_owned(), (*holds).into())).collect();
        let word = if all { "ok" } else { "unavailable" };
        Self::json(if all { 200 } else { 503 }, &serde_json::json!({ "status": word, "checks": checks }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_check_that_fails_is_enough() {
        assert_eq!(Answer::ready(&[("records", true), ("routes", true)]).status, 200);
        let not = Answer::ready(&[("records", false), ("routes", true)]);
        assert_eq!(not.status, 503);
        assert!(String::from_utf8_lossy(&not.body).contains(r#""records":false"#));
    }
}
