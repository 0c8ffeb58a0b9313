// SPDX-License-Identifier: Apache-2.0
//! JSON that notices keys given twice and refuses to be deeper than the limit.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use weft_base::issue::{FieldPath, Issue};
use weft_base::limits::DOCUMENT_DEPTH_MAX;

use super::unreadable;
use crate::guards;

/// Reads one value at `path`.
struct Reader<'a> {
    path: FieldPath,
    depth: usize,
    duplicates: &'a mut Vec<FieldPath>,
}

pub(super) fn parse(text: &[u8]) -> Result<(Value, Vec<FieldPath>), Issue> {
    let mut duplicates = Vec::new();
    let mut source = serde_json::Deserializer::from_slice(text);
    let reader = Reader { path: FieldPath::root(), depth: 0, duplicates: &mut duplicates };
    let value = reader
        .deserialize(&mut source)
        .and_then(|value| source.end().map(|()| value))
        .map_err(|e| unreadable(format!("the body is not JSON: {e}")))?;
    Ok((value, duplicates))
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        if self.depth > DOCUMENT_DEPTH_MAX && guards::on("document-depth") {
            return Err(D::Error::custom(format!(
                "{} is nested deeper than {DOCUMENT_DEPTH_MAX} levels",
                self.path
            )));
        }
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        let number = Number::from_f64(v).ok_or_else(|| E::custom("a number must be finite"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let reader = Reader {
                path: self.path.index(out.len()),
                depth: self.depth + 1,
                duplicates: &mut *self.duplicates,
            };
            match seq.next_element_seed(reader)? {
                Some(value) => out.push(value),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = self.path.field(&key);
            let reader = Reader {
                path: path.clone(),
                depth: self.depth + 1,
                duplicates: &mut *self.duplicates,
            };
            let value = map.next_value_seed(reader)?;
            if out.insert(key, value).is_some() {
                self.duplicates.push(path);
            }
        }
        Ok(Value::Object(out))
    }
}
