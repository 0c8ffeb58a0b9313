// SPDX-License-Identifier: Apache-2.0
//! Label and field selectors of lists and watches.

use serde_json::Value;
use weft_kinds::kind::KindId;

use super::status::ApiError;
use crate::json::Fields;

/// Terms of one selector.
const TERMS_MAX: usize = 64;

/// Which objects a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Term>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    More(String, i64),
    Less(String, i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    value: String,
    equal: bool,
}

// === impl Selector ===

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`.
    pub(super) fn parse(kind: KindId, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let labels = split(labels).into_iter().map(term).collect::<Result<Vec<_>, _>>()?;
        let fields: Vec<_> = fields.split(',').map(str::trim).filter(|t| !t.is_empty()).collect();
        let fields = fields.into_iter().map(|t| field(kind, t)).collect::<Result<Vec<_>, _>>()?;
        if labels.len() + fields.len() > TERMS_MAX {
            let message = format!("a selector has at most {TERMS_MAX} terms");
            return Err(ApiError::bad_request(message));
        }
        Ok(Self { labels, fields })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn with_name(mut self, name: &str) -> Self {
        let path = "metadata.name".to_owned();
        self.fields.push(FieldTerm { path, value: name.to_owned(), equal: true });
        self
    }

    pub(super) fn holds(&self, object: &Value) -> bool {
        let labels = object.at("metadata").at("labels");
        self.labels.iter().all(|t| t.holds(labels)) && self.fields.iter().all(|t| t.holds(object))
    }
}

impl Term {
    fn holds(&self, labels: &Value) -> bool {
        let own = |key: &str| labels.get(key).and_then(Value::as_str);
        let number = |key: &str| own(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Term::In(key, all) => own(key).is_some_and(|v| all.iter().any(|a| a == v)),
            Term::NotIn(key, all) => own(key).is_none_or(|v| all.iter().all(|a| a != v)),
            Term::Exists(key) => own(key).is_some(),
            Term::Absent(key) => own(key).is_none(),
            Term::More(key, n) => number(key).is_some_and(|v| v > *n),
            Term::Less(key, n) => number(key).is_some_and(|v| v < *n),
        }
    }
}

impl FieldTerm {
    fn holds(&self, object: &Value) -> bool {
        let found = self.path.split('.').fold(object, |v, step| v.at(step));
        let text = match found {
            Value::String(s) => s.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        (text == self.value) == self.equal
    }
}

/// At commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0i32, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(text.get(start..i).unwrap_or_default());
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(text.get(start..).unwrap_or_default());
    out.into_iter().map(str::trim).filter(|t| !t.is_empty()).collect()
}

fn term(text: &str) -> Result<Term, ApiError> {
    let bad = || {
        ApiError::bad_request(format!(
            "unable to parse requirement {text:?}; write key=value, key!=value, key in (a,b), key \
             notin (a,b), key or !key"
        ))
    };
    let key = |k: &str| {
        let k = k.trim();
        let ok = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if k.is_empty() || !k.chars().all(ok) { Err(bad()) } else { Ok(k.to_owned()) }
    };
    let one = |v: &str| vec![v.trim().to_owned()];
    if let Some((k, list)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let all = list.split(',').map(|v| v.trim().to_owned()).collect();
        let mut words = k.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(k), Some("in"), None) => Ok(Term::In(key(k)?, all)),
            (Some(k), Some("notin"), None) => Ok(Term::NotIn(key(k)?, all)),
            _ => Err(bad()),
        };
    }
    if let Some((k, v)) = text.split_once("!=") {
        return Ok(Term::NotIn(key(k)?, one(v)));
    }
    if let Some((k, v)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Term::In(key(k)?, one(v)));
    }
    if let Some((k, v)) = text.split_once('>') {
        return Ok(Term::More(key(k)?, v.trim().parse().map_err(|_| bad())?));
    }
    if let Some((k, v)) = text.split_once('<') {
        return Ok(Term::Less(key(k)?, v.trim().parse().map_err(|_| bad())?));
    }
    match text.strip_prefix('!') {
        Some(k) => Ok(Term::Absent(key(k)?)),
        None => Ok(Term::Exists(key(text)?)),
    }
}

fn field(kind: KindId, text: &str) -> Result<FieldTerm, ApiError> {
    let parts = text.split_once("!=").map(|(p, v)| (p, v, false));
    let parts = parts.or_else(|| text.split_once("==").map(|(p, v)| (p, v, true)));
    let parts = parts.or_else(|| text.split_once('=').map(|(p, v)| (p, v, true)));
    let Some((path, value, equal)) = parts else {
        let message = format!("invalid field selector {text:?}; write field=value or field!=value");
        return Err(ApiError::bad_request(message));
    };
    let path = path.trim();
    if !known(kind, path) {
        let message = format!(
            "field label not supported: {path}; {} can be selected by: {}",
            kind.row().plural,
            [&["metadata.name", "metadata.namespace"], fields_of(kind)].concat().join(", ")
        );
        return Err(ApiError::bad_request(message));
    }
    Ok(FieldTerm { path: path.to_owned(), value: value.trim().to_owned(), equal })
}

fn known(kind: KindId, path: &str) -> bool {
    matches!(path, "metadata.name" | "metadata.namespace") || fields_of(kind).contains(&path)
}

/// What the real server lets each kind be selected by.
fn fields_of(kind: KindId) -> &'static [&'static str] {
    match kind {
        KindId::Pod => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        KindId::Event => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        KindId::Namespace => &["status.phase"],
        KindId::Secret => &["type"],
        KindId::Service => &["spec.clusterIP", "spec.type"],
        KindId::Node => &["spec.unschedulable"],
        KindId::ReplicaSet => &["status.replicas"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn holds(labels: &str, fields: &str) -> bool {
        let pod = json!({"metadata": {"name": "p", "labels": {"app": "web", "n": "7"}},
            "status": {"phase": "Running"}});
        Selector::parse(KindId::Pod, labels, fields).unwrap().holds(&pod)
    }

    #[test]
    fn selectors_as_kubectl_writes_them() {
        for yes in ["app=web", "app==web,n", "app in (web, api),!x", "x notin (a)", "x!=a", "n>6"] {
            assert!(holds(yes, ""), "{yes}");
        }
        for no in ["app=api", "app!=web", "app notin (web)", "!app", "x", "n<7"] {
            assert!(!holds(no, ""), "{no}");
        }
        assert!(holds("", "metadata.name=p,status.phase!=Pending"));
        assert!(!holds("", "metadata.name=q"));
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for bad in ["app in web", "a b=c", "=x", "app in (a", "n>x"] {
            assert!(Selector::parse(KindId::Pod, bad, "").is_err(), "{bad}");
        }
        let error = Selector::parse(KindId::Service, "", "spec.foo=1").unwrap_err();
        assert!(error.message.contains("spec.clusterIP"), "{}", error.message);
    }
}
