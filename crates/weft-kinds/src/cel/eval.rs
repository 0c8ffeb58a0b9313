// SPDX-License-Identifier: Apache-2.0
//! A rule's tree over JSON. `&&` and `||` absorb the other side's error when one side decides,
//! as the language says.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::CelError;
use super::parse::{Expr, Op};
use crate::check::format_matches;

/// Functions, methods and macros that exist.
pub(super) const FUNCTIONS: &[&str] = &[
    "all",
    "contains",
    "duration",
    "endsWith",
    "exists",
    "exists_one",
    "filter",
    "getScheme",
    "has",
    "int",
    "isIP",
    "isURL",
    "lowerAscii",
    "map",
    "matches",
    "size",
    "split",
    "startsWith",
    "string",
    "substring",
    "url",
];

/// A value while a rule runs.
#[derive(Clone, Debug)]
enum V<'a> {
    Json(Cow<'a, Value>),
    List(Vec<V<'a>>),
    /// Nanoseconds.
    Duration(i128),
    /// A URL's scheme; all that rules ask of one.
    Url(String),
}

/// Names in sight, innermost first.
struct Scope<'s, 'a> {
    name: &'s str,
    value: V<'a>,
    outer: Option<&'s Scope<'s, 'a>>,
}

type Answer<'a> = Result<V<'a>, CelError>;

pub(super) fn truth(expr: &Expr, value: &Value, old: Option<&Value>) -> Result<bool, CelError> {
    let self_ = Scope { name: "self", value: json(value), outer: None };
    match old {
        Some(old) => {
            let both = Scope { name: "oldSelf", value: json(old), outer: Some(&self_) };
            as_bool(&eval(expr, &both)?)
        }
        None => as_bool(&eval(expr, &self_)?),
    }
}

fn json(value: &Value) -> V<'_> {
    V::Json(Cow::Borrowed(value))
}

fn owned<'a>(value: impl Into<Value>) -> V<'a> {
    V::Json(Cow::Owned(value.into()))
}

fn eval<'a>(expr: &Expr, scope: &Scope<'_, 'a>) -> Answer<'a> {
    match expr {
        Expr::Null => Ok(owned(Value::Null)),
        Expr::Bool(b) => Ok(owned(*b)),
        Expr::Int(n) => Ok(owned(*n)),
        Expr::Double(n) => Ok(owned(*n)),
        Expr::Text(s) => Ok(owned(s.as_str())),
        Expr::EmptyMap => Ok(owned(serde_json::Map::new())),
        Expr::Name(name) => lookup(name, scope),
        Expr::List(all) => {
            Ok(V::List(all.iter().map(|e| eval(e, scope)).collect::<Result<_, _>>()?))
        }
        Expr::Field(target, name) => field(eval(target, scope)?, name),
        Expr::Index(target, index) => {
            let (target, index) = (eval(target, scope)?, eval(index, scope)?);
            element(target, &index)
        }
        Expr::Not(e) => Ok(owned(!as_bool(&eval(e, scope)?)?)),
        Expr::Minus(e) => match number(&eval(e, scope)?) {
            Some(n) => Ok(owned(-n)),
            None => Err(CelError::Type("only numbers can be negated".into())),
        },
        Expr::Binary(op, a, b) => binary(*op, a, b, scope),
        Expr::If(test, yes, no) => {
            if as_bool(&eval(test, scope)?)? {
                eval(yes, scope)
            } else {
                eval(no, scope)
            }
        }
        Expr::Call(target, name, args) => call(target.as_deref(), name, args, scope),
    }
}

fn lookup<'a>(name: &str, scope: &Scope<'_, 'a>) -> Answer<'a> {
    let mut at = Some(scope);
    while let Some(here) = at {
        if here.name == name {
            return Ok(here.value.clone());
        }
        at = here.outer;
    }
    Err(CelError::NoSuchField(name.to_owned()))
}

fn field<'a>(target: V<'a>, name: &str) -> Answer<'a> {
    let found = match &target {
        V::Json(Cow::Borrowed(v)) => v.get(name).map(json),
        V::Json(Cow::Owned(v)) => v.get(name).cloned().map(owned),
        _ => None,
    };
    found.ok_or_else(|| CelError::NoSuchField(name.to_owned()))
}

fn element<'a>(target: V<'a>, index: &V<'a>) -> Answer<'a> {
    if let V::Json(key) = index {
        if let Some(key) = key.as_str() {
            return field(target, key);
        }
        let at = key.as_u64().and_then(|n| usize::try_from(n).ok());
        if let Some(found) = at.and_then(|at| items(&target).into_iter().nth(at)) {
            return Ok(found);
        }
    }
    Err(CelError::NoSuchField("an element of a list".into()))
}

fn binary<'a>(op: Op, a: &Expr, b: &Expr, scope: &Scope<'_, 'a>) -> Answer<'a> {
    if matches!(op, Op::And | Op::Or) {
        let decides = op == Op::Or;
        let left = eval(a, scope).and_then(|v| as_bool(&v));
        if left == Ok(decides) {
            return Ok(owned(decides));
        }
        let right = eval(b, scope).and_then(|v| as_bool(&v));
        if right == Ok(decides) {
            return Ok(owned(decides));
        }
        left?;
        return right.map(owned);
    }
    let (a, b) = (eval(a, scope)?, eval(b, scope)?);
    let order = |wanted: &[Ordering]| match compare(&a, &b) {
        Some(o) => Ok(owned(wanted.contains(&o))),
        None => Err(CelError::Type("values of different types cannot be ordered".into())),
    };
    match op {
        Op::Eq => Ok(owned(equal(&a, &b))),
        Op::Ne => Ok(owned(!equal(&a, &b))),
        Op::Lt => order(&[Ordering::Less]),
        Op::Le => order(&[Ordering::Less, Ordering::Equal]),
        Op::Gt => order(&[Ordering::Greater]),
        Op::Ge => order(&[Ordering::Greater, Ordering::Equal]),
        Op::In => Ok(owned(contains(&b, &a))),
        Op::Add if text(&a).is_some() => {
            let (a, b) = (text(&a).unwrap_or_default(), text(&b).unwrap_or_default());
            Ok(owned(format!("{a}{b}")))
        }
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Rem | Op::And | Op::Or => {
            let (Some(a), Some(b)) = (number(&a), number(&b)) else {
                return Err(CelError::Type("numbers are expected".into()));
            };
            let done = match op {
                Op::Add => a.checked_add(b),
                Op::Sub => a.checked_sub(b),
                Op::Mul => a.checked_mul(b),
                Op::Div => a.checked_div(b),
                _ => a.checked_rem(b),
            };
            done.map(owned).ok_or_else(|| CelError::Type("the number is too large".into()))
        }
    }
}

fn call<'a>(target: Option<&Expr>, name: &str, args: &[Expr], scope: &Scope<'_, 'a>) -> Answer<'a> {
    if let (None, "has", [Expr::Field(of, name)]) = (target, name, args) {
        let of = eval(of, scope)?;
        return Ok(owned(field(of, name).is_ok_and(|v| !is_null(&v))));
    }
    if let (Some(target), [Expr::Name(var), body]) = (target, args)
        && matches!(name, "all" | "exists" | "exists_one" | "filter" | "map")
    {
        return quantified(name, eval(target, scope)?, var, body, scope);
    }
    let mut all: Vec<V<'a>> = Vec::with_capacity(args.len() + 1);
    for expr in target.into_iter().chain(args) {
        all.push(eval(expr, scope)?);
    }
    function(name, &all)
}

fn quantified<'a>(
    name: &str,
    over: V<'a>,
    var: &str,
    body: &Expr,
    scope: &Scope<'_, 'a>,
) -> Answer<'a> {
    let (mut hits, mut kept, mut error) = (0, Vec::new(), None);
    let all = items(&over);
    let count = all.len();
    for item in all {
        let inner = Scope { name: var, value: item.clone(), outer: Some(scope) };
        let answer = eval(body, &inner);
        if name == "map" {
            kept.push(answer?);
            continue;
        }
        match answer.and_then(|v| as_bool(&v)) {
            Ok(true) => {
                hits += 1;
                kept.push(item);
            }
            Ok(false) if name == "all" => return Ok(owned(false)),
            Ok(false) => {}
            Err(e) => error = Some(e),
        }
    }
    match (name, error) {
        ("exists", _) if hits > 0 => Ok(owned(true)),
        (_, Some(e)) => Err(e),
        ("all", None) => Ok(owned(hits == count)),
        ("exists", None) => Ok(owned(false)),
        ("exists_one", None) => Ok(owned(hits == 1)),
        _ => Ok(V::List(kept)),
    }
}

fn function<'a>(name: &str, args: &[V<'a>]) -> Answer<'a> {
    let words: Vec<&str> = args.iter().map_while(text).collect();
    let answer = match (name, args, words.as_slice()) {
        ("size", [_], [s]) => owned(s.chars().count()),
        ("size", [v], _) => owned(length(v)),
        ("startsWith", _, [s, with]) => owned(s.starts_with(with)),
        ("endsWith", _, [s, with]) => owned(s.ends_with(with)),
        ("contains", _, [s, part]) => owned(s.contains(part)),
        ("matches", _, [s, pattern]) => owned(format_matches(pattern, s)),
        ("lowerAscii", _, [s]) => owned(s.to_ascii_lowercase()),
        ("split", _, [s, by]) => V::List(s.split(by).map(owned).collect()),
        ("substring", [_, from, rest @ ..], [s]) => {
            let end = rest.first().and_then(number).unwrap_or(i64::MAX);
            let from = number(from).unwrap_or_default();
            let (from, end) = (usize::try_from(from), usize::try_from(end));
            let (from, end) = (from.unwrap_or(0), end.unwrap_or(0));
            owned(s.chars().skip(from).take(end.saturating_sub(from)).collect::<String>())
        }
        ("int", [_], [s]) => match s.parse::<i64>() {
            Ok(n) => owned(n),
            Err(_) => return Err(CelError::Type(format!("{s:?} is not a whole number"))),
        },
        ("int", [v], _) => owned(number(v).unwrap_or_default()),
        ("string", [v], _) => owned(text(v).map_or_else(|| format!("{v:?}"), str::to_owned)),
        ("isIP", _, [s]) => owned(s.parse::<std::net::IpAddr>().is_ok()),
        ("isURL", _, [s]) => owned(scheme(s).is_some()),
        ("url", _, [s]) => match scheme(s) {
            Some(scheme) => V::Url(scheme.to_owned()),
            None => return Err(CelError::Type(format!("{s:?} is not a URL"))),
        },
        ("getScheme", [V::Url(scheme)], _) => owned(scheme.as_str()),
        ("duration", _, [s]) => match duration(s) {
            Some(ns) => V::Duration(ns),
            None => return Err(CelError::Type(format!("{s:?} is not a duration"))),
        },
        _ => return Err(CelError::Unsupported(name.to_owned())),
    };
    Ok(answer)
}

/// Elements of a list, or keys of a map.
fn items<'a>(value: &V<'a>) -> Vec<V<'a>> {
    match value {
        V::List(all) => all.clone(),
        V::Json(Cow::Borrowed(Value::Array(all))) => all.iter().map(json).collect(),
        V::Json(Cow::Borrowed(Value::Object(map))) => {
            map.keys().map(|k| owned(k.as_str())).collect()
        }
        V::Json(Cow::Owned(Value::Array(all))) => all.iter().cloned().map(owned).collect(),
        V::Json(Cow::Owned(Value::Object(map))) => map.keys().map(|k| owned(k.as_str())).collect(),
        _ => Vec::new(),
    }
}

fn length(value: &V<'_>) -> usize {
    match value {
        V::List(all) => all.len(),
        V::Json(v) => match v.as_ref() {
            Value::Array(all) => all.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        },
        V::Duration(_) | V::Url(_) => 0,
    }
}

fn contains(among: &V<'_>, value: &V<'_>) -> bool {
    items(among).iter().any(|v| equal(v, value))
}

fn equal(a: &V<'_>, b: &V<'_>) -> bool {
    match (a, b) {
        (V::Json(a), V::Json(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a.total_cmp(&b) == Ordering::Equal,
            _ => a == b,
        },
        (V::Duration(a), V::Duration(b)) => a == b,
        (V::Url(a), V::Url(b)) => a == b,
        _ => {
            let (a, b) = (items(a), items(b));
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| equal(a, b))
        }
    }
}

fn compare(a: &V<'_>, b: &V<'_>) -> Option<Ordering> {
    match (a, b) {
        (V::Duration(a), V::Duration(b)) => Some(a.cmp(b)),
        (V::Json(a), V::Json(b)) => match (a.as_str(), b.as_str()) {
            (Some(a), Some(b)) => Some(a.cmp(b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        _ => None,
    }
}

fn as_bool(value: &V<'_>) -> Result<bool, CelError> {
    match value {
        V::Json(v) if v.is_boolean() => Ok(v.as_bool().unwrap_or_default()),
        _ => Err(CelError::Type("true or false is expected".into())),
    }
}

fn is_null(value: &V<'_>) -> bool {
    matches!(value, V::Json(v) if v.is_null())
}

fn text<'v>(value: &'v V<'_>) -> Option<&'v str> {
    match value {
        V::Json(v) => v.as_str(),
        _ => None,
    }
}

fn number(value: &V<'_>) -> Option<i64> {
    match value {
        V::Json(v) => v.as_i64(),
        _ => None,
    }
}

/// A URL's scheme, empty for an absolute path; `None` when the text is not a URL.
fn scheme(text: &str) -> Option<&str> {
    if text.starts_with('/') {
        return Some("");
    }
    let (scheme, rest) = text.split_once("://")?;
    let ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    (ok && !rest.is_empty() && !text.contains(char::is_whitespace)).then_some(scheme)
}

/// Go's duration text in nanoseconds.
fn duration(text: &str) -> Option<i128> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0i128;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        total += whole.parse::<i128>().ok()?.checked_mul(scale)?;
        if !part.is_empty() {
            let digits: String = part.chars().take(9).collect();
            let power = 10i128.pow(u32::try_from(digits.len()).ok()?);
            total += digits.parse::<i128>().ok()? * scale / power;
        }
        rest = next;
    }
    (!text.is_empty()).then_some(if negative { -total } else { total })
}
