// SPDX-License-Identifier: Apache-2.0
//! Texts of prepared queries that are templates: `${name.suffix}` and the like. Judged when a
//! query is written (`query.rs`), filled in when one is asked (`query_run.rs`). Pure.

use serde_json::{Map, Value};

/// What a template may put in.
const KNOWN: &str = "name.full, name.prefix, name.suffix, agent.segment and match(N)";

/// The name that was asked for, as a template sees it.
#[derive(Clone, Debug, Default)]
pub struct Asked<'a> {
    pub full: &'a str,
    pub prefix: &'a str,
    pub suffix: &'a str,
    /// What its pattern found: all of it, then its groups.
    pub found: Vec<String>,
}

// === impl Asked ===

impl Asked<'_> {
    /// `$${` is a plain `${`, as in Consul.
    ///
    /// # Errors
    /// When the text is no template; the answer says why.
    fn text(&self, text: &str) -> Result<String, String> {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            if let Some(plain) = before.strip_suffix('$') {
                out.push_str(plain);
                out.push_str("${");
                rest = after;
                continue;
            }
            let (inside, tail) = after.split_once('}').ok_or("a \"}\" is missing")?;
            out.push_str(before);
            out.push_str(self.value(inside.trim())?);
            rest = tail;
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, name: &str) -> Result<&str, String> {
        let group = || -> Option<usize> {
            name.strip_prefix("match(")?.strip_suffix(')')?.trim().parse().ok()
        };
        match name {
            "name.full" => Ok(self.full),
            "name.prefix" => Ok(self.prefix),
            "name.suffix" => Ok(self.suffix),
            "agent.segment" => Ok(""),
            _ => match group() {
                Some(at) => Ok(self.found.get(at).map_or("", String::as_str)),
                None => Err(format!("{name:?} is not known; there are {KNOWN}")),
            },
        }
    }

    /// Every text of a part of a query. What is no template, kept by an older server, stays as it
    /// is.
    pub fn fill(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text).unwrap_or(text)),
            Value::Array(items) => items.into_iter().map(|item| self.fill(item)).collect(),
            Value::Object(map) => {
                map.into_iter().map(|(k, v)| (k, self.fill(v))).collect::<Map<_, _>>().into()
            }
            other => other,
        }
    }
}

/// Whether every text of a part can be filled in; `at` is where the part is in the body.
///
/// # Errors
/// With Consul's sentence for the first that cannot.
pub fn judge(value: &Value, at: &str) -> Result<(), String> {
    match value {
        Value::String(text) => match Asked::default().text(text) {
            Ok(_) => Ok(()),
            Err(why) => {
                let text: String = text.chars().take(64).collect();
                Err(format!("failed compiling template: Bad format '{text}' in {at}: {why}"))
            }
        },
        Value::Array(items) => {
            let mut each = items.iter().enumerate();
            each.try_for_each(|(index, item)| judge(item, &format!("{at}[{index}]")))
        }
        Value::Object(map) => {
            map.iter().try_for_each(|(name, item)| judge(item, &format!("{at}.{name}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_filled_in_once() {
        let found = vec!["geo-web".to_owned(), "${name.full}".to_owned()];
        let asked = Asked { full: "geo-web", prefix: "geo-", suffix: "web", found };
        for (text, filled) in [
            ("${name.full}|${name.prefix}|${name.suffix}|${agent.segment}|", "geo-web|geo-|web||"),
            ("a ${ match(0) } b", "a geo-web b"),
            ("${match(1)}", "${name.full}"),
            ("${match(12)}x", "x"),
            ("$${name.full} $$ {}", "${name.full} $$ {}"),
            ("${bogus} ${name.full}", "${bogus} ${name.full}"),
        ] {
            assert_eq!(asked.fill(json!({"Tags": [text]})), json!({"Tags": [filled]}));
        }
    }

    #[test]
    fn what_cannot_be_filled_in_is_named_with_its_place() {
        for (text, why) in [
            ("${name.full", "in Service.Tags[1]: a \"}\" is missing"),
            ("${bogus}", "Bad format '${bogus}' in Service.Tags[1]: \"bogus\" is not known"),
            ("${match(-1)}", "match(N)"),
            ("${}", "\"\" is not known"),
        ] {
            let said = judge(&json!({"Tags": ["fine", text], "OnlyPassing": true}), "Service");
            assert!(said.clone().is_err_and(|said| said.contains(why)), "{text}: {said:?}");
        }
    }
}
