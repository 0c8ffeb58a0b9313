// SPDX-License-Identifier: Apache-2.0
//! The part of the Common Expression Language that the rules (`x-kubernetes-validations`) of the
//! served kinds are written in, evaluated on raw JSON. A test walks every committed rule, so what
//! is not understood shows when schemas are brought up to date, not at a user's object.
//!
//! Called by `check`. Rules come from committed schemas only; nothing a user sends is parsed here.

mod eval;
mod parse;

use serde_json::Value;
use thiserror::Error;

/// Why a rule gave no answer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CelError {
    #[error("the rule is not understood at {0:?}")]
    Syntax(String),
    #[error("{0} is not supported in rules")]
    Unsupported(String),
    #[error("no such field: {0}")]
    NoSuchField(String),
    #[error("{0}")]
    Type(String),
}

/// Whether a rule holds of `value`; a rule about change (`oldSelf`) holds when there is no `old`.
///
/// # Errors
/// When it speaks of an absent field, or uses what is not supported.
pub fn evaluate(rule: &str, value: &Value, old: Option<&Value>) -> Result<bool, CelError> {
    let expr = parse::parse(rule)?;
    if old.is_none() && expr.mentions("oldSelf") {
        return Ok(true);
    }
    eval::truth(&expr, value, old)
}

/// Functions and macros of a rule that this evaluator does not have.
///
/// # Errors
/// When the rule cannot be parsed.
pub fn unsupported(rule: &str) -> Result<Vec<String>, CelError> {
    let mut out = Vec::new();
    parse::parse(rule)?.calls(&mut |name| {
        if !eval::FUNCTIONS.contains(&name) {
            out.push(name.to_owned());
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests;
