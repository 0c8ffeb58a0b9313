// SPDX-License-Identifier: Apache-2.0
//! An object's JSON as the World keeps it: a value, or its text where there are many that are
//! seldom looked at. Whoever reads it sees a value; a text that was read once through [`Deref`]
//! stays a value from then on, through [`Raw::fresh`] it stays a text.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Raw(Form);

#[derive(Clone, Debug)]
enum Form {
    Value(Arc<Value>),
    Text(Arc<Text>),
}

#[derive(Debug)]
struct Text {
    bytes: Box<[u8]>,
    read: OnceLock<Arc<Value>>,
}

// === impl Raw ===

impl Raw {
    /// Bytes that are no JSON read as null.
    pub fn packed(bytes: &[u8]) -> Self {
        Self(Form::Text(Arc::new(Text { bytes: bytes.into(), read: OnceLock::new() })))
    }

    pub fn shared(&self) -> Arc<Value> {
        match &self.0 {
            Form::Value(value) => value.clone(),
            Form::Text(text) => text.value().clone(),
        }
    }

    /// For who reads it once: a text stays one.
    pub fn fresh(&self) -> Cow<'_, Value> {
        match &self.0 {
            Form::Value(value) => Cow::Borrowed(value),
            Form::Text(text) => match text.read.get() {
                Some(value) => Cow::Borrowed(value),
                None => Cow::Owned(text.parse()),
            },
        }
    }
}

impl Text {
    fn value(&self) -> &Arc<Value> {
        self.read.get_or_init(|| Arc::new(self.parse()))
    }

    fn parse(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }
}

impl From<Value> for Raw {
    fn from(value: Value) -> Self {
        Self(Form::Value(Arc::new(value)))
    }
}

impl Deref for Raw {
    type Target = Value;

    fn deref(&self) -> &Value {
        match &self.0 {
            Form::Value(value) => value,
            Form::Text(text) => text.value(),
        }
    }
}

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Form::Text(a), Form::Text(b)) if a.bytes == b.bytes => true,
            _ => self.fresh() == other.fresh(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_reads_as_its_value_and_stays_small_until_it_is_kept() {
        let value = serde_json::json!({"spec": {"ports": [{"port": 80}]}});
        let (raw, plain) = (Raw::packed(value.to_string().as_bytes()), Raw::from(value.clone()));
        let is_read = || matches!(&raw.0, Form::Text(text) if text.read.get().is_some());
        assert_eq!(*raw.fresh(), value);
        assert_eq!((&raw, &raw.clone()), (&plain, &raw));
        assert!(!is_read());
        assert_eq!(raw["spec"]["ports"][0]["port"], 80);
        assert!(is_read());
        assert_eq!(raw.shared(), plain.shared());
        assert_ne!(raw, Raw::packed(b"{}"));
        assert_eq!(*Raw::packed(b"no JSON"), Value::Null);
    }
}
