// SPDX-License-Identifier: Apache-2.0
//! Consul's ACL rules, in HCL or JSON, as rows of the one permission table. Pure.
//!
//! `key_prefix "app/" { policy = "write" }  acl = "read"`

use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

use serde_json::{Map, Value};
use weft_identity::permission::{Kind, Names, Permission, Verb};

/// Longest rules of one policy, bytes, and deepest nesting.
const LENGTH_MAX: usize = 64 * 1024;
const DEPTH_MAX: usize = 8;

/// Kinds with one policy for all, and those with a policy for each name.
const PLAIN: [&str; 5] = ["acl", "keyring", "mesh", "operator", "peering"];
const NAMED: [&str; 7] = ["agent", "event", "key", "node", "query", "service", "session"];

/// Reads rules.
///
/// # Errors
/// When they are none; the text says where.
pub fn parse(subject: &Arc<str>, text: &str) -> Result<Vec<Permission>, String> {
    if text.len() > LENGTH_MAX {
        return Err(format!("the rules are longer than {LENGTH_MAX} bytes"));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let body = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).map_err(|why| why.to_string())?,
        false => Hcl { chars: text.chars().peekable() }.body(0)?,
    };
    let mut out = Vec::new();
    for (name, value) in &body {
        entry(subject, name, value, &mut out)?;
    }
    Ok(out)
}

/// One top-level block or attribute.
fn entry(
    subject: &Arc<str>,
    name: &str,
    value: &Value,
    out: &mut Vec<Permission>,
) -> Result<(), String> {
    if let Value::Array(several) = value {
        return several.iter().try_for_each(|one| entry(subject, name, one, out));
    }
    let row = |kind, names, verb| Permission {
        subject: subject.clone(),
        kind,
        namespace: None,
        names,
        verb,
    };
    if PLAIN.contains(&name) {
        let kind = Kind::parse(name).ok_or_else(|| format!("unknown rule {name:?}"))?;
        let Value::String(policy) = value else {
            return Err(format!("{name} = \"read\", \"write\" or \"deny\" is expected"));
        };
        out.push(row(kind, Names::Prefix("".into()), verb(name, policy)?));
        return Ok(());
    }
    // As in Consul, where these say nothing any more.
    if ["identity", "identity_prefix"].contains(&name) {
        return Ok(());
    }
    let (base, prefix) = match name.strip_suffix("_prefix") {
        Some(base) => (base, true),
        None => (name, false),
    };
    let kind = Kind::parse(base).filter(|_| NAMED.contains(&base)).ok_or_else(|| {
        format!("unknown rule {name:?}; namespaces and partitions of Enterprise are not offered")
    })?;
    let Value::Object(blocks) = value else {
        return Err(format!("{name} \"NAME\" {{ policy = \"read\" }} is expected"));
    };
    for (label, block) in blocks {
        let names = |label: &str| match prefix {
            true => Names::Prefix(label.into()),
            false => Names::Exactly(label.into()),
        };
        let bodies = match block {
            Value::Array(several) => several.iter().collect(),
            one => vec![one],
        };
        for block in bodies {
            let (policy, intentions) = policies(name, label, block)?;
            let verb = verb(name, policy)?;
            out.push(row(kind, names(label), verb));
            if kind == Kind::Service {
                let right = match intentions {
                    Some(text) => self::verb("intentions", text)?,
                    None => verb.map(|_| Verb::Read),
                };
                out.push(row(Kind::Intention, names(label), right));
            }
        }
    }
    Ok(())
}

fn policies<'a>(
    name: &str,
    label: &str,
    block: &'a Value,
) -> Result<(&'a str, Option<&'a str>), String> {
    let at = || format!("{name} {label:?}");
    let Value::Object(block) = block else {
        return Err(format!("{} has no block", at()));
    };
    let known = |key: &&String| !["policy", "intentions"].contains(&key.as_str());
    if let Some(other) = block.keys().find(known) {
        return Err(format!("{} has {other:?}, which is not offered", at()));
    }
    let text = |key: &str| block.get(key).and_then(Value::as_str);
    let policy = text("policy").ok_or_else(|| format!("{} has no policy", at()))?;
    Ok((policy, text("intentions")))
}

fn verb(name: &str, policy: &str) -> Result<Option<Verb>, String> {
    match policy.to_ascii_lowercase().as_str() {
        "read" => Ok(Some(Verb::Read)),
        "write" => Ok(Some(Verb::Write)),
        "list" if name.starts_with("key") => Ok(Some(Verb::List)),
        "deny" => Ok(None),
        _ => Err(format!("{name} has the policy {policy:?}; use read, write or deny")),
    }
}

/// The part of HCL that rules are written in: `name = "value"`, `name "label" { … }`, comments.
struct Hcl<'a> {
    chars: Peekable<Chars<'a>>,
}

// === impl Hcl ===

impl Hcl<'_> {
    fn body(&mut self, depth: usize) -> Result<Map<String, Value>, String> {
        if depth > DEPTH_MAX {
            return Err("the rules are nested too deeply".to_owned());
        }
        let mut out = Map::new();
        loop {
            self.blank()?;
            match self.chars.peek() {
                None if depth == 0 => return Ok(out),
                None => return Err("a \"}\" is missing".to_owned()),
                Some('}') if depth > 0 => {
                    self.chars.next();
                    return Ok(out);
                }
                Some(_) => self.item(depth, &mut out)?,
            }
        }
    }

    fn item(&mut self, depth: usize, out: &mut Map<String, Value>) -> Result<(), String> {
        let name = match self.chars.peek() {
            Some('"') => self.text()?,
            _ => self.word()?,
        };
        self.blank()?;
        match self.chars.peek().copied() {
            Some('=') => {
                self.chars.next();
                self.blank()?;
                let value = self.value(depth)?;
                add(out, name, value);
            }
            Some('"') => {
                let label = self.text()?;
                self.blank()?;
                if self.chars.next() != Some('{') {
                    return Err(format!("a \"{{\" is expected after {name} {label:?}"));
                }
                let body = Value::Object(self.body(depth + 1)?);
                let mut labelled = Map::new();
                labelled.insert(label, body);
                add(out, name, Value::Object(labelled));
            }
            Some('{') => {
                self.chars.next();
                let body = Value::Object(self.body(depth + 1)?);
                add(out, name, body);
            }
            other => {
                return Err(format!(
                    "\"=\" or a block is expected after {name:?}, found {other:?}"
                ));
            }
        }
        self.blank()?;
        if self.chars.peek() == Some(&',') {
            self.chars.next();
        }
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        match self.chars.peek() {
            Some('"') => self.text().map(Value::String),
            Some('{') => {
                self.chars.next();
                self.body(depth + 1).map(Value::Object)
            }
            _ => self.word().map(Value::String),
        }
    }

    /// Passes over spaces and comments.
    fn blank(&mut self) -> Result<(), String> {
        while let Some(c) = self.chars.peek().copied() {
            if c.is_whitespace() {
                self.chars.next();
                continue;
            }
            let mut ahead = self.chars.clone();
            ahead.next();
            match (c, ahead.peek()) {
                ('#', _) | ('/', Some('/')) => {
                    while self.chars.next().is_some_and(|c| c != '\n') {}
                }
                ('/', Some('*')) => {
                    self.chars.next();
                    self.chars.next();
                    let mut last = ' ';
                    loop {
                        match self.chars.next() {
                            None => return Err("a comment does not end".to_owned()),
                            Some('/') if last == '*' => break,
                            Some(c) => last = c,
                        }
                    }
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn word(&mut self) -> Result<String, String> {
        let mut out = String::new();
        while let Some(c) = self.chars.peek().copied() {
            if !(c.is_alphanumeric() || "_-.".contains(c)) {
                break;
            }
            out.push(c);
            self.chars.next();
        }
        match out.is_empty() {
            true => Err(format!("a name is expected, found {:?}", self.chars.peek())),
            false => Ok(out),
        }
    }

    fn text(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.chars.next();
        loop {
            match self.chars.next() {
                None | Some('\n') => return Err("a quoted text does not end".to_owned()),
                Some('"') => return Ok(out),
                Some('\\') => match self.chars.next() {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some(c @ ('"' | '\\')) => out.push(c),
                    other => return Err(format!("unknown escape {other:?}")),
                },
                Some(c) => out.push(c),
            }
        }
    }
}

/// The same name again makes a list.
fn add(out: &mut Map<String, Value>, name: String, value: Value) {
    match out.get_mut(&name) {
        None => {
            out.insert(name, value);
        }
        Some(Value::Array(several)) => several.push(value),
        Some(one) => *one = Value::Array(vec![one.take(), value]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let shown = |p: Permission| {
            let (star, name) = match &p.names {
                Names::Exactly(name) => ("", name),
                Names::Prefix(name) => ("*", name),
            };
            format!("{} {name}{star} {}", p.kind.as_str(), p.verb.map_or("deny", Verb::as_str))
        };
        parse(&"p".into(), text).map(|rows| rows.into_iter().map(shown).collect())
    }

    #[test]
    fn hcl_and_json_say_the_same() {
        let hcl = "# keys\nkey_prefix \"app/\" { policy = \"write\" }\n\
                   key \"x\" {\n policy = \"deny\"\n}\n\
                   /* and */ operator = \"read\" // all\n";
        let json = r#"{"key_prefix": {"app/": {"policy": "write"}},
                       "key": {"x": {"policy": "deny"}}, "operator": "read"}"#;
        let mut expect = ["key app/* write", "key x deny", "operator * read"];
        expect.sort_unstable();
        for text in [hcl, json] {
            let mut got = read(text).unwrap();
            got.sort_unstable();
            assert_eq!(got, expect);
        }
    }

    #[test]
    fn a_service_brings_its_intentions() {
        let rows = read("service \"web\" { policy = \"write\" }").unwrap();
        assert_eq!(rows, ["service web write", "intention web read"]);
        let rows = read("service \"web\" { policy = \"read\" intentions = \"deny\" }").unwrap();
        assert_eq!(rows, ["service web read", "intention web deny"]);
    }

    #[test]
    fn levels_are_read_in_any_case_and_what_consul_took_out_says_nothing() {
        assert_eq!(read("key \"a\" { policy = \"Write\" }").unwrap(), ["key a write"]);
        assert_eq!(read("acl = \"READ\"").unwrap(), ["acl * read"]);
        let old = "identity \"a\" { policy = \"read\" } identity_prefix \"\" { policy = \"deny\" }";
        assert_eq!(read(old).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_block_may_come_again() {
        let rows = read("key \"a\" { policy = \"read\" } key \"b\" { policy = \"list\" }").unwrap();
        assert_eq!(rows, ["key a read", "key b list"]);
    }

    #[test]
    fn what_is_no_rule_is_refused_never_ignored() {
        for (text, part) in [
            ("kee \"a\" { policy = \"read\" }", "unknown rule"),
            ("key \"a\" { policy = \"reed\" }", "use read, write or deny"),
            ("key \"a\" { }", "no policy"),
            ("key \"a\" { policy = \"read\"", "\"}\" is missing"),
            ("key \"a { policy", "does not end"),
            ("acl = \"list\"", "use read"),
            ("key \"a\" { policy = \"write\" sentinel { code = \"x\" } }", "not offered"),
            ("{\"key\": 1}", "is expected"),
        ] {
            let got = read(text);
            assert!(got.clone().is_err_and(|why| why.contains(part)), "{text}: {got:?}");
        }
        assert!(read(&"a {".repeat(1000)).is_err());
    }
}
