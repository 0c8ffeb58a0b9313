// SPDX-License-Identifier: Apache-2.0
//! Rule text into a tree: a small lexer and a precedence climber.

use super::CelError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
    Name(String),
    List(Vec<Expr>),
    /// `{}` is the only map literal the rules use.
    EmptyMap,
    Field(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>),
    /// Function, or method when there is a target.
    Call(Option<Box<Expr>>, String, Vec<Expr>),
    Not(Box<Expr>),
    Minus(Box<Expr>),
    Binary(Op, Box<Expr>, Box<Expr>),
    If(Box<Expr>, Box<Expr>, Box<Expr>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Or,
    And,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    Add,
    Sub,
    Mul,
    Div,
    Rem,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Int(i64),
    Double(f64),
    Sign(&'static str),
}

const SIGNS: &[&str] = &[
    "||", "&&", "==", "!=", "<=", ">=", "<", ">", "!", "?", ":", ".", ",", "(", ")", "[", "]", "{",
    "}", "+", "-", "*", "/", "%",
];

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

pub(super) fn parse(rule: &str) -> Result<Expr, CelError> {
    let mut parser = Parser { tokens: lex(rule)?, at: 0 };
    let expr = parser.ternary()?;
    match parser.peek() {
        None => Ok(expr),
        Some(rest) => Err(CelError::Syntax(format!("{rest:?}"))),
    }
}

// === impl Expr ===

impl Expr {
    pub(super) fn mentions(&self, name: &str) -> bool {
        let mut found = false;
        self.walk(&mut |e| found |= matches!(e, Expr::Name(n) if n == name));
        found
    }

    pub(super) fn calls(&self, tell: &mut dyn FnMut(&str)) {
        self.walk(&mut |e| {
            if let Expr::Call(_, name, _) = e {
                tell(name);
            }
        });
    }

    fn walk(&self, see: &mut dyn FnMut(&Expr)) {
        see(self);
        match self {
            Expr::List(all) => all.iter().for_each(|e| e.walk(see)),
            Expr::Field(e, _) | Expr::Not(e) | Expr::Minus(e) => e.walk(see),
            Expr::Index(a, b) | Expr::Binary(_, a, b) => {
                a.walk(see);
                b.walk(see);
            }
            Expr::Call(target, _, args) => {
                target.iter().for_each(|e| e.walk(see));
                args.iter().for_each(|e| e.walk(see));
            }
            Expr::If(a, b, c) => [a, b, c].iter().for_each(|e| e.walk(see)),
            _ => {}
        }
    }
}

// === impl Parser ===

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, sign: &str) -> bool {
        let yes = matches!(self.peek(), Some(Token::Sign(s)) if *s == sign);
        self.at += usize::from(yes);
        yes
    }

    fn expect(&mut self, sign: &str) -> Result<(), CelError> {
        if self.take(sign) {
            return Ok(());
        }
        Err(CelError::Syntax(format!("{:?} where {sign} is expected", self.peek())))
    }

    fn ternary(&mut self) -> Result<Expr, CelError> {
        let test = self.binary(0)?;
        if !self.take("?") {
            return Ok(test);
        }
        let yes = self.ternary()?;
        self.expect(":")?;
        let no = self.ternary()?;
        Ok(Expr::If(test.into(), yes.into(), no.into()))
    }

    fn binary(&mut self, least: u8) -> Result<Expr, CelError> {
        let mut left = self.unary()?;
        while let Some((op, strength)) = self.operator().filter(|(_, s)| *s >= least) {
            self.at += 1;
            let right = self.binary(strength + 1)?;
            left = Expr::Binary(op, left.into(), right.into());
        }
        Ok(left)
    }

    fn operator(&self) -> Option<(Op, u8)> {
        Some(match self.peek()? {
            Token::Name(n) if n == "in" => (Op::In, 2),
            Token::Sign("||") => (Op::Or, 0),
            Token::Sign("&&") => (Op::And, 1),
            Token::Sign("==") => (Op::Eq, 2),
            Token::Sign("!=") => (Op::Ne, 2),
            Token::Sign("<") => (Op::Lt, 2),
            Token::Sign("<=") => (Op::Le, 2),
            Token::Sign(">") => (Op::Gt, 2),
            Token::Sign(">=") => (Op::Ge, 2),
            Token::Sign("+") => (Op::Add, 3),
            Token::Sign("-") => (Op::Sub, 3),
            Token::Sign("*") => (Op::Mul, 4),
            Token::Sign("/") => (Op::Div, 4),
            Token::Sign("%") => (Op::Rem, 4),
            _ => return None,
        })
    }

    fn unary(&mut self) -> Result<Expr, CelError> {
        if self.take("!") {
            return Ok(Expr::Not(self.unary()?.into()));
        }
        if self.take("-") {
            return Ok(Expr::Minus(self.unary()?.into()));
        }
        self.postfix()
    }

    fn postfix(&mut self) -> Result<Expr, CelError> {
        let mut expr = self.primary()?;
        loop {
            if self.take(".") {
                let name = self.name()?;
                expr = if self.take("(") {
                    Expr::Call(Some(expr.into()), name, self.list(")")?)
                } else {
                    Expr::Field(expr.into(), unescape(name))
                };
            } else if self.take("[") {
                let index = self.ternary()?;
                self.expect("]")?;
                expr = Expr::Index(expr.into(), index.into());
            } else {
                return Ok(expr);
            }
        }
    }

    fn primary(&mut self) -> Result<Expr, CelError> {
        let token = self.peek().cloned();
        self.at += 1;
        match token {
            Some(Token::Int(n)) => Ok(Expr::Int(n)),
            Some(Token::Double(n)) => Ok(Expr::Double(n)),
            Some(Token::Text(s)) => Ok(Expr::Text(s)),
            Some(Token::Name(n)) => Ok(match n.as_str() {
                "true" => Expr::Bool(true),
                "false" => Expr::Bool(false),
                "null" => Expr::Null,
                _ if self.take("(") => Expr::Call(None, n, self.list(")")?),
                _ => Expr::Name(n),
            }),
            Some(Token::Sign("(")) => {
                let inner = self.ternary()?;
                self.expect(")")?;
                Ok(inner)
            }
            Some(Token::Sign("[")) => Ok(Expr::List(self.list("]")?)),
            Some(Token::Sign("{")) => {
                self.expect("}")?;
                Ok(Expr::EmptyMap)
            }
            other => Err(CelError::Syntax(format!("{other:?}"))),
        }
    }

    fn list(&mut self, end: &str) -> Result<Vec<Expr>, CelError> {
        let mut out = Vec::new();
        if self.take(end) {
            return Ok(out);
        }
        loop {
            out.push(self.ternary()?);
            if !self.take(",") {
                self.expect(end)?;
                return Ok(out);
            }
        }
    }

    fn name(&mut self) -> Result<String, CelError> {
        let token = self.peek().cloned();
        self.at += 1;
        match token {
            Some(Token::Name(n)) => Ok(n),
            other => Err(CelError::Syntax(format!("{other:?} where a name is expected"))),
        }
    }
}

/// `__namespace__` is how rules write a field whose name is a reserved word.
fn unescape(name: String) -> String {
    match name.strip_prefix("__").and_then(|n| n.strip_suffix("__")) {
        Some(word) if !word.is_empty() => word.to_owned(),
        _ => name,
    }
}

fn lex(rule: &str) -> Result<Vec<Token>, CelError> {
    let mut out = Vec::new();
    let mut rest = rule.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, len) = if let Some((text, len)) = text_literal(rest) {
            (Token::Text(text), len)
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let end = end.unwrap_or(rest.len());
            (Token::Name(rest.get(..end).unwrap_or_default().to_owned()), end)
        } else if first.is_ascii_digit() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let text = rest.get(..end).unwrap_or_default();
            let number = text.parse().map(Token::Int).ok();
            let number = number.or_else(|| text.parse().map(Token::Double).ok());
            (number.ok_or_else(|| CelError::Syntax(text.to_owned()))?, end)
        } else if let Some(sign) = SIGNS.iter().find(|s| rest.starts_with(**s)) {
            (Token::Sign(sign), sign.len())
        } else {
            return Err(CelError::Syntax(rest.chars().take(20).collect()));
        };
        out.push(token);
        rest = rest.get(len..).unwrap_or_default().trim_start();
    }
    Ok(out)
}

/// A text literal at the start, `'…'`, `"…"`, `"""…"""`, each raw with `r`, and its length.
fn text_literal(rest: &str) -> Option<(String, usize)> {
    let raw = rest.starts_with("r'") || rest.starts_with("r\"");
    let skip = usize::from(raw);
    let body = rest.get(skip..)?;
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|q| body.starts_with(q))?;
    let inner = body.get(quote.len()..)?;
    let mut out = String::new();
    let mut chars = inner.char_indices();
    while let Some((i, c)) = chars.next() {
        if inner.get(i..)?.starts_with(quote) {
            return Some((out, skip + 2 * quote.len() + i));
        }
        match c {
            '\\' if !raw => match chars.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                other => out.push(other),
            },
            c => out.push(c),
        }
    }
    None
}
