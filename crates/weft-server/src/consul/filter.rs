// SPDX-License-Identifier: Apache-2.0
//! `?filter=`: Consul's boolean expressions (go-bexpr) over the JSON that would be answered.
//!
//! `Service.Tags contains "v1" and not (Node.Meta.rack == "a" or ServiceMeta is empty)`

use regex::Regex;
use serde_json::{Map, Value};

use super::body::same;
use super::error::Refusal;

pub mod typed;

/// Longest expression, bytes, and deepest nesting.
const LENGTH_MAX: usize = 4096;
const DEPTH_MAX: u32 = 32;
/// Memory that one compiled pattern may take.
const REGEX_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub struct Filter(Expr);

#[derive(Clone, Debug)]
enum Expr {
    Or(Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Test(Test),
}

/// One comparison.
#[derive(Clone, Debug)]
struct Test {
    path: Vec<String>,
    op: Op,
    /// Its selector is known to be one.
    judged: bool,
    /// What is compared where the item leaves the field out.
    absent: Option<Value>,
}

#[derive(Clone, Debug)]
enum Op {
    Equal(String),
    /// The selector's value has this: an element, a key, or a part of text.
    Contains(String),
    Empty,
    Matches(Regex),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(&'static str),
}

// === impl Filter ===

impl Filter {
    /// # Errors
    /// When the text is no expression; the answer says where.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let wrong = |why: String| {
            Refusal::bad(format!("Failed to create boolean expression evaluator: {why}"))
        };
        if text.len() > LENGTH_MAX {
            return Err(wrong(format!("the filter is longer than {LENGTH_MAX} bytes")));
        }
        let tokens = scan(text).map_err(wrong)?;
        let mut parser = Parser { tokens, at: 0 };
        let expr = parser.or(0).map_err(wrong)?;
        match parser.peek() {
            None => Ok(Self(expr)),
            Some(extra) => Err(wrong(format!("unexpected {extra:?} after the expression"))),
        }
    }

    /// The same of what is known to have these fields.
    ///
    /// # Errors
    /// Also when it asks for others, or for what they cannot be.
    pub fn of(text: &str, fields: typed::Fields) -> Result<Self, Refusal> {
        let Self(mut expr) = Self::parse(text)?;
        typed::judge(&mut expr, fields).map_err(|why| {
            Refusal::bad(format!("Failed to create boolean expression evaluator: {why}"))
        })?;
        Ok(Self(expr))
    }

    /// Keeps the items that the expression holds for.
    ///
    /// # Errors
    /// When a selector names a field that an item does not have.
    pub fn apply(&self, items: Vec<Value>) -> Result<Vec<Value>, Refusal> {
        let mut out = Vec::new();
        for item in items {
            if self.holds(&item)? {
                out.push(item);
            }
        }
        Ok(out)
    }

    /// # Errors
    /// As [`Filter::apply`].
    pub fn holds(&self, item: &Value) -> Result<bool, Refusal> {
        eval(&self.0, item).map_err(Refusal::bad)
    }
}

// === evaluation ===

fn eval(expr: &Expr, item: &Value) -> Result<bool, String> {
    Ok(match expr {
        Expr::Or(a, b) => eval(a, item)? || eval(b, item)?,
        Expr::And(a, b) => eval(a, item)? && eval(b, item)?,
        Expr::Not(e) => !eval(e, item)?,
        Expr::Test(Test { path, op, judged, absent }) => {
            let mut found = select(item, path, *judged)?;
            if found.is_empty() {
                found.extend(absent);
            }
            // A list on the way: any of its elements will do.
            found.iter().any(|value| test(value, op))
                || (found.is_empty() && matches!(op, Op::Empty))
        }
    })
}

/// Fields that hold a client's own keys: any key may be asked for, and may be absent.
const MAPS: [&str; 10] = [
    "Meta",
    "NodeMeta",
    "ServiceMeta",
    "TaggedAddresses",
    "ServiceTaggedAddresses",
    "Proxy",
    "ServiceProxy",
    "Connect",
    "ServiceConnect",
    "Definition",
];

/// Fields that are left out when they are not set.
const OPTIONAL: [&str; 8] = [
    "Kind",
    "TaggedAddresses",
    "ServiceTaggedAddresses",
    "Proxy",
    "Connect",
    "Namespace",
    "Partition",
    "Locality",
];

/// Fields that are shown as they were written, however their own fields are spelled.
const WRITTEN: [&str; 4] = ["Proxy", "ServiceProxy", "Connect", "ServiceConnect"];

fn select<'a>(item: &'a Value, path: &[String], judged: bool) -> Result<Vec<&'a Value>, String> {
    let mut now = vec![item];
    let (mut in_map, mut as_written) = (false, false);
    for segment in path {
        let mut next = Vec::new();
        for value in now {
            match value {
                Value::Object(map) => match field(map, segment, as_written) {
                    Some(found) => next.push(found),
                    None if judged || in_map || OPTIONAL.contains(&segment.as_str()) => {}
                    None => {
                        return Err(format!("Selector {:?} is not valid", path.join(".")));
                    }
                },
                Value::Array(items) => {
                    let fields = items.iter().filter_map(|i| i.as_object());
                    next.extend(fields.filter_map(|f| f.get(segment)));
                }
                _ if judged => {}
                _ => return Err(format!("Selector {:?} is not valid", path.join("."))),
            }
        }
        in_map |= MAPS.contains(&segment.as_str());
        as_written |= WRITTEN.contains(&segment.as_str());
        now = next;
    }
    now.retain(|value| !judged || !value.is_null());
    Ok(now)
}

fn field<'a>(map: &'a Map<String, Value>, name: &str, as_written: bool) -> Option<&'a Value> {
    let spelled = || map.iter().find(|(key, _)| as_written && same(key, name));
    map.get(name).or_else(|| spelled().map(|(_, value)| value))
}

fn test(value: &Value, op: &Op) -> bool {
    match op {
        Op::Equal(text) => equal(value, text),
        Op::Contains(text) => match value {
            Value::Array(items) => items.iter().any(|i| equal(i, text)),
            Value::Object(map) => map.contains_key(text),
            Value::String(s) => s.contains(text.as_str()),
            _ => false,
        },
        Op::Empty => match value {
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(s) => s.is_empty(),
            Value::Null => true,
            _ => false,
        },
        Op::Matches(regex) => value.as_str().is_some_and(|s| regex.is_match(s)),
    }
}

fn equal(value: &Value, text: &str) -> bool {
    match value {
        Value::String(s) => s == text,
        Value::Number(n) => n.to_string() == text,
        Value::Bool(b) => b.to_string() == text,
        _ => false,
    }
}

// === grammar ===

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn word(&mut self, word: &str) -> bool {
        let here = matches!(self.peek(), Some(Token::Word(w)) if w == word);
        self.at += usize::from(here);
        here
    }

    fn sign(&mut self, sign: &str) -> bool {
        let here = matches!(self.peek(), Some(Token::Sign(s)) if *s == sign);
        self.at += usize::from(here);
        here
    }

    fn or(&mut self, depth: u32) -> Result<Expr, String> {
        let mut left = self.and(depth)?;
        while self.word("or") {
            left = Expr::Or(Box::new(left), Box::new(self.and(depth)?));
        }
        Ok(left)
    }

    fn and(&mut self, depth: u32) -> Result<Expr, String> {
        let mut left = self.not(depth)?;
        while self.word("and") {
            left = Expr::And(Box::new(left), Box::new(self.not(depth)?));
        }
        Ok(left)
    }

    fn not(&mut self, depth: u32) -> Result<Expr, String> {
        if depth > DEPTH_MAX {
            return Err("the filter is nested too deeply".to_owned());
        }
        if self.word("not") {
            return Ok(Expr::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.sign("(") {
            let inner = self.or(depth + 1)?;
            return if self.sign(")") { Ok(inner) } else { Err("a \")\" is missing".to_owned()) };
        }
        self.test()
    }

    /// `selector op value`, `value in selector`, `selector is empty`.
    fn test(&mut self) -> Result<Expr, String> {
        let first = self.take().ok_or("the filter ends where a selector is expected")?;
        let negated = |expr: Expr, not: bool| if not { Expr::Not(Box::new(expr)) } else { expr };
        let start = self.at;
        let not = self.word("not");
        if self.word("in") {
            let text = match &first {
                Token::Word(s) | Token::Text(s) => s.clone(),
                Token::Sign(s) => return Err(format!("unexpected {s:?}")),
            };
            let path = self.selector()?;
            return Ok(negated(test_of(path, Op::Contains(text)), not));
        }
        self.at = start;
        let path = path_of(first, self)?;
        if self.sign("==") || self.sign("!=") {
            let not = matches!(self.tokens.get(self.at - 1), Some(Token::Sign("!=")));
            return Ok(negated(test_of(path, Op::Equal(self.value()?)), not));
        }
        if self.word("is") {
            let not = self.word("not");
            return match self.word("empty") {
                true => Ok(negated(test_of(path, Op::Empty), not)),
                false => Err("\"is\" is followed by \"empty\" or \"not empty\"".to_owned()),
            };
        }
        let not = self.word("not");
        if self.word("contains") {
            return Ok(negated(test_of(path, Op::Contains(self.value()?)), not));
        }
        if self.word("matches") {
            let pattern = self.value()?;
            let regex = regex::RegexBuilder::new(&pattern)
                .size_limit(REGEX_BYTES_MAX)
                .build()
                .map_err(|why| format!("the pattern {pattern:?} is not usable: {why}"))?;
            return Ok(negated(test_of(path, Op::Matches(regex)), not));
        }
        Err(format!("an operator is expected after {:?}", path.join(".")))
    }

    fn selector(&mut self) -> Result<Vec<String>, String> {
        let token = self.take().ok_or("the filter ends where a selector is expected")?;
        path_of(token, self)
    }

    fn value(&mut self) -> Result<String, String> {
        match self.take() {
            Some(Token::Word(s) | Token::Text(s)) => Ok(s),
            _ => Err("a value is expected after the operator".to_owned()),
        }
    }
}

fn test_of(path: Vec<String>, op: Op) -> Expr {
    Expr::Test(Test { path, op, judged: false, absent: None })
}

/// `Node.Meta["a b"].c` as its segments.
fn path_of(first: Token, parser: &mut Parser) -> Result<Vec<String>, String> {
    let Token::Word(word) = first else {
        return Err(format!("a selector is expected, found {first:?}"));
    };
    let mut path: Vec<String> = word.split('.').map(str::to_owned).collect();
    while parser.sign("[") {
        match (parser.take(), parser.sign("]")) {
            (Some(Token::Text(key) | Token::Word(key)), true) => path.push(key),
            _ => return Err("\"[\" is followed by a key in quotes and \"]\"".to_owned()),
        }
        if let Some(Token::Word(rest)) = parser.peek()
            && let Some(rest) = rest.strip_prefix('.')
        {
            path.extend(rest.split('.').map(str::to_owned));
            parser.at += 1;
        }
    }
    match path.iter().all(|s| !s.is_empty()) {
        true => Ok(path),
        false => Err(format!("{word:?} is no selector")),
    }
}

fn scan(text: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let signs = ["==", "!=", "(", ")", "[", "]"];
        if let Some(sign) = signs.into_iter().find(|s| rest.starts_with(s)) {
            out.push(Token::Sign(sign));
            rest = rest.get(sign.len()..).unwrap_or_default();
        } else if first == '"' || first == '`' {
            let (value, tail) = quoted(rest, first)?;
            out.push(Token::Text(value));
            rest = tail;
        } else {
            let ends = |c: char| c.is_whitespace() || "()[]\"`=!".contains(c);
            let end = rest.find(ends).unwrap_or(rest.len());
            if end == 0 {
                return Err(format!("unexpected {first:?}"));
            }
            let (word, tail) = rest.split_at(end);
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-:/+".contains(c);
            if let Some(odd) = word.chars().find(|c| !is_plain(*c)) {
                return Err(format!(
                    "{odd:?} in {word:?} is read in quotes alone: write the value as \"…\" or `…`"
                ));
            }
            out.push(Token::Word(word.to_owned()));
            rest = tail;
        }
        rest = rest.trim_start();
    }
    Ok(out)
}

/// A value in quotes, and what comes behind it.
fn quoted(text: &str, quote: char) -> Result<(String, &str), String> {
    let mut value = Vec::new();
    let mut rest = text.get(1..).unwrap_or_default();
    while let Some(c) = rest.chars().next() {
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        match c {
            _ if c == quote => {
                let text = String::from_utf8(value);
                let text = text.map_err(|_| "what is escaped in quotes is no UTF-8".to_owned())?;
                return Ok((text, rest));
            }
            '\\' if quote == '"' => rest = escaped(rest, &mut value)?,
            '\n' if quote == '"' => {
                return Err("a value in quotes has a line break: write it as \\n".to_owned());
            }
            _ => push(&mut value, c),
        }
    }
    Err("a quoted value does not end".to_owned())
}

fn push(value: &mut Vec<u8>, c: char) {
    value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// What a backslash begins, as in Go's source text; the text behind it. What Go does not know
/// stays as it is, the backslash with it.
fn escaped<'a>(text: &'a str, value: &mut Vec<u8>) -> Result<&'a str, String> {
    let Some(c) = text.chars().next() else { return Ok(text) };
    let (from, digits, base) = match c {
        'x' => (1, 2, 16),
        'u' => (1, 4, 16),
        'U' => (1, 8, 16),
        '0'..='7' => (0, 3, 8),
        _ => {
            let plain = [('a', 7), ('b', 8), ('t', 9), ('n', 10), ('v', 11), ('f', 12), ('r', 13)];
            match plain.into_iter().find(|(name, _)| *name == c) {
                Some((_, byte)) => value.push(byte),
                None if c == '"' || c == '\\' => push(value, c),
                None => {
                    value.push(b'\\');
                    push(value, c);
                }
            }
            return Ok(text.get(c.len_utf8()..).unwrap_or_default());
        }
    };
    let wrong = || format!("\"\\{c}\" in quotes is followed by {digits} digits of base {base}");
    let read = text.get(from..from + digits).ok_or_else(wrong)?;
    let is_digits = read.chars().all(|c| c.is_digit(base));
    let code = u32::from_str_radix(read, base).ok().filter(|_| is_digits).ok_or_else(wrong)?;
    match c {
        'u' | 'U' => push(value, char::from_u32(code).ok_or_else(wrong)?),
        _ => value.push(u8::try_from(code).map_err(|_| wrong())?),
    }
    Ok(text.get(from + digits..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(filter: &str, expect: Result<bool, &str>) {
        let item = serde_json::json!({
            "Node": {"Node": "n1", "Meta": {"rack": "a", "x y": "1"}},
            "Service": {"Tags": ["v1", "b"], "Port": 80, "Meta": {}, "Address": ""},
            "Checks": [{"Status": "passing"}, {"Status": "warning"}],
        });
        let got = Filter::parse(filter).and_then(|f| f.holds(&item)).map_err(|r| r.text);
        match expect {
            Ok(expect) => assert_eq!(got, Ok(expect), "{filter}"),
            Err(part) => assert!(got.clone().is_err_and(|e| e.contains(part)), "{filter}: {got:?}"),
        }
    }

    #[test]
    fn expressions_hold_as_in_consul() {
        check("Node.Node == n1", Ok(true));
        check("Node.Node != \"n1\"", Ok(false));
        check("Service.Port == 80", Ok(true));
        check("\"v1\" in Service.Tags", Ok(true));
        check("v2 not in Service.Tags", Ok(true));
        check("Service.Tags contains b and Service.Tags not contains c", Ok(true));
        check("Service.Meta is empty", Ok(true));
        check("Service.Tags is not empty", Ok(true));
        check("Node.Meta.rack == a", Ok(true));
        check("Node.Meta[\"x y\"] == `1`", Ok(true));
        check("rack in Node.Meta", Ok(true));
        check("Node.Meta.other == a", Ok(false));
        check("Node.Meta.other != a", Ok(true));
        check("Node.Node matches \"^n[0-9]$\"", Ok(true));
        check(r#"Node.Node matches "^n\d$" and Node.Node matches `^n\d$`"#, Ok(true));
        for escaped in [r"\u006e1", r"\x6e1", r"\156\061", r"\U0000006e1"] {
            check(&format!("Node.Node == \"{escaped}\""), Ok(true));
        }
        check("Node.Node != `n\n1`", Ok(true));
        check("Checks.Status == warning", Ok(true));
        check("not (Node.Node == n1 or Node.Node == n2) or Service.Port == 80", Ok(true));
        check("Node.Node == a or Node.Node == b and Service.Port == 80", Ok(false));
    }

    #[test]
    fn what_is_no_expression_is_refused_with_a_sentence() {
        check("", Err("selector is expected"));
        check("Node.Node ==", Err("value is expected"));
        check("Node.Node == n1 n2", Err("after the expression"));
        check("(Node.Node == n1", Err("is missing"));
        check("Node.Node == \"n1", Err("does not end"));
        check("Nope == 1", Err("not valid"));
        check("Node.Node like x", Err("operator is expected"));
        check("Node.Node matches \"(\"", Err("not usable"));
        for value in ["'n1'", "a$b", "n1;", "*", "ä"] {
            check(&format!("Node.Node == {value}"), Err("is read in quotes alone"));
            check(&format!("Node.Node == \"{value}\""), Ok(false));
        }
        check("'v1' in Service.Tags", Err("is read in quotes alone"));
        for odd in [r#""\x6""#, r#""\u00g1""#, r#""\+12""#, r#""\ud800""#, r#""\777""#] {
            let fine = odd == r#""\+12""#;
            let expect = if fine { Ok(false) } else { Err("in quotes is followed by") };
            check(&format!("Node.Node == {odd}"), expect);
        }
        check(r#"Node.Node == "\xff""#, Err("no UTF-8"));
        check("Node.Node == \"n\n1\"", Err("line break"));
        check("Node.Node == 10.0.0.1 or Node.Node == n-1", Ok(false));
        check(&"(".repeat(1000), Err("nested too deeply"));
        check(&"a".repeat(5000), Err("longer than"));
    }
}
