// SPDX-License-Identifier: Apache-2.0
//! Durations as Go writes and reads them: `1h2m3.5s`, `120000ms`; a bare number is nanoseconds.

use std::time::Duration;

const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads Go's form; `None` when it is none, negative or too large.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        total = total.checked_add(scaled(number, scale)?)?;
        rest = tail;
    }
    // Go's int64 nanoseconds end at 292 years.
    i64::try_from(total).ok()?;
    Some(Duration::from_nanos(u64::try_from(total).ok()?))
}

/// Writes Go's form: the zero is `0s`.
pub fn format(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (secs, ms) = (ms / 1000, ms % 1000);
    let (hours, minutes, secs) = (secs / 3600, secs / 60 % 60, secs % 60);
    let fraction =
        if ms == 0 { String::new() } else { format!(".{ms:03}").trim_end_matches('0').to_owned() };
    match (hours, minutes) {
        (0, 0) => format!("{secs}{fraction}s"),
        (0, m) => format!("{m}m{secs}{fraction}s"),
        (h, m) => format!("{h}h{m}m{secs}{fraction}s"),
    }
}

/// The same to the nanosecond.
pub fn exactly(span: Duration) -> String {
    let nanos = span.as_nanos();
    let scaled = |unit: u128, name: &str| {
        let fraction = format!("{:0width$}", nanos % unit, width = unit.ilog10() as usize);
        match fraction.trim_end_matches('0') {
            "" => format!("{}{name}", nanos / unit),
            rest => format!("{}.{rest}{name}", nanos / unit),
        }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => scaled(1_000, "µs"),
        1_000_000..1_000_000_000 => scaled(1_000_000, "ms"),
        _ => {
            let secs = span.as_secs();
            let (hours, minutes) = (secs / 3600, secs / 60 % 60);
            let nanos = u128::from(secs % 60) * 1_000_000_000 + u128::from(span.subsec_nanos());
            let fraction = format!("{:09}", nanos % 1_000_000_000);
            let secs = match fraction.trim_end_matches('0') {
                "" => format!("{}s", nanos / 1_000_000_000),
                rest => format!("{}.{rest}s", nanos / 1_000_000_000),
            };
            match (hours, minutes) {
                (0, 0) => secs,
                (0, m) => format!("{m}m{secs}"),
                (h, m) => format!("{h}h{m}m{secs}"),
            }
        }
    }
}

/// `number` (with at most one dot) times `scale`, rounded down.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(scale)?;
    let mut part = scale;
    for digit in fraction.chars() {
        part /= 10;
        total = total.checked_add(u128::from(digit.to_digit(10)?).checked_mul(part)?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, ms) in [
            ("10s", 10_000),
            ("120000ms", 120_000),
            ("1h2m3.5s", 3_723_500),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("0", 0),
            ("20ms", 20),
            ("1m0s", 60_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "10", "s", "-1s", "1x", "1.2.3s", "99999999999h", ".s", "1 s", "5d"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn writes_what_go_writes() {
        for (ms, text) in
            [(0, "0s"), (10, "10ms"), (10_000, "10s"), (90_500, "1m30.5s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(format(ms), text);
            assert_eq!(exactly(Duration::from_millis(ms)), text);
        }
        for (text, shown) in [("1ns", "1ns"), ("1500us", "1.5ms"), ("1.5us", "1.5µs")] {
            assert_eq!(exactly(parse(text).unwrap()), shown);
        }
        assert_eq!(exactly(parse("1m0.000000001s").unwrap()), "1m0.000000001s");
    }
}
