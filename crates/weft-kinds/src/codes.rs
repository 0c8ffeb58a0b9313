// SPDX-License-Identifier: Apache-2.0
//! The stable codes of the findings that the schema engine makes; `docs/errors.md` explains each.

pub const UNKNOWN_FIELD: &str = "W1001";
pub const WRONG_TYPE: &str = "W1002";
pub const REQUIRED: &str = "W1003";
pub const NOT_SUPPORTED: &str = "W1004";
pub const INVALID: &str = "W1005";
pub const DUPLICATE: &str = "W1006";
pub const TOO_MANY: &str = "W1007";
pub const RULE: &str = "W1008";
pub const UNREADABLE: &str = "W1009";
pub const UNKNOWN_KIND: &str = "W1010";
pub const FORBIDDEN: &str = "W1011";

/// Every code with what it means and what to do, for the generated index.
pub const CODES: &[(&str, &str, &str)] = &[
    (UNKNOWN_FIELD, "unknown field", "the field is not part of the kind; mind its spelling"),
    (WRONG_TYPE, "wrong type", "give the value the type that the message names"),
    (REQUIRED, "required value", "add the field"),
    (NOT_SUPPORTED, "unsupported value", "use one of the values that the message lists"),
    (INVALID, "invalid value", "change the value to what the message asks for"),
    (DUPLICATE, "duplicate value", "keep one of the equal entries"),
    (TOO_MANY, "too long or too many", "shorten the text or the list"),
    (RULE, "a rule of the kind does not hold", "the message is the rule in words"),
    (UNREADABLE, "not readable as YAML or JSON", "mend the line that the message names"),
    (UNKNOWN_KIND, "unknown kind", "use a kind and version that `weft schema` lists"),
    (FORBIDDEN, "a field that may not change", "delete the object and create it anew"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_says_what_the_table_says() {
        let index = include_str!("../../../docs/errors.md");
        let rows: Vec<&str> = index.lines().filter(|l| l.starts_with("| W")).collect();
        let table: Vec<String> = CODES
            .iter()
            .map(|(code, what, todo)| format!("| {code} | {what} | {todo} |"))
            .collect();
        assert_eq!(rows, table);
    }
}
