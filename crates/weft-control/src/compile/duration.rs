// SPDX-License-Identifier: Apache-2.0
//! Durations as Gateway API and Istio write them: `1h30m`, `500ms`, `0.5s`.

/// Milliseconds, rounded up so that a written limit never becomes "none"; `None` when it is no
/// duration. `0s` is 0.
pub fn parse_ms(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, tail) = rest.split_at(number);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        nanos = nanos.checked_add(part(value, unit)?)?;
        rest = tail;
    }
    u64::try_from(nanos.div_ceil(1_000_000)).ok()
}

fn part(value: &str, unit: &str) -> Option<u128> {
    let scale: u128 = match unit {
        "h" => 3_600_000_000_000,
        "m" => 60_000_000_000,
        "s" => 1_000_000_000,
        "ms" => 1_000_000,
        "us" | "µs" => 1_000,
        "ns" => 1,
        _ => return None,
    };
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 9 || whole.len() > 9 {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let exponent = u32::try_from(fraction.len()).ok()?;
    Some(digits(whole)? * scale + digits(fraction)? * scale / 10u128.pow(exponent))
}

#[cfg(test)]
mod tests {
    use super::parse_ms;

    #[test]
    fn durations_of_both_dialects_are_read() {
        for (text, want) in [
            ("10s", Some(10_000)),
            ("800ms", Some(800)),
            ("0.5s", Some(500)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("1.5h", Some(5_400_000)),
            ("0s", Some(0)),
            ("1ns", Some(1)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1x", None),
            ("-1s", None),
            ("1..5s", None),
        ] {
            assert_eq!(parse_ms(text), want, "{text:?}");
        }
    }
}
