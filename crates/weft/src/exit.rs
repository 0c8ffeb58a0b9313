// SPDX-License-Identifier: Apache-2.0
//! Exit codes: 0 ok, 1 failed, 2 usage, 3 a check did not hold, 4 server unreachable.

use std::fmt;
use std::process::ExitCode;

/// The server did not answer.
#[derive(Debug)]
pub struct Unreachable(pub String, pub String);

/// The command line asks for something that does not exist.
#[derive(Debug)]
pub struct Usage(pub String);

/// What was to be checked does not hold.
#[derive(Debug)]
pub struct CheckFailed(pub String);

/// The exit code of an error.
pub fn code(error: &anyhow::Error) -> ExitCode {
    if error.is::<Usage>() {
        ExitCode::from(2)
    } else if error.is::<CheckFailed>() {
        ExitCode::from(3)
    } else if error.is::<Unreachable>() {
        ExitCode::from(4)
    } else {
        ExitCode::FAILURE
    }
}

/// An error with its causes; those that a message already quotes are not told again.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no weft server answers at {}: {}; start one with `weft up` or `weft server`, or name \
             another with `--server http://HOST:PORT`",
            self.0, self.1
        )
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for CheckFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}
impl std::error::Error for Usage {}
impl std::error::Error for CheckFailed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let disk = std::io::Error::other("no space left");
        let quoting = anyhow::Error::new(disk).context("cannot write: no space left");
        assert_eq!(sentence(&quoting), "cannot write: no space left");
        let plain = anyhow::Error::new(std::io::Error::other("no space left")).context("in /data");
        assert_eq!(sentence(&plain), "in /data: no space left");
    }
}
