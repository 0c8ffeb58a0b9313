// SPDX-License-Identifier: Apache-2.0
//! The indexes of an Indexed Job that are done, as its status writes them: `0,2-4`. Pure.

use std::collections::BTreeSet;

/// Reads ranges; what cannot be read, or is not below `end`, is left out.
pub(super) fn parse(text: &str, end: u32) -> BTreeSet<u32> {
    let mut out = BTreeSet::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<u32>(), to.parse::<u32>()) {
            out.extend(from..to.saturating_add(1).min(end));
        }
    }
    out
}

/// Writes ranges; three in a row are one range.
pub(super) fn write(indexes: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let text = |&(from, to): &(u32, u32)| match to - from {
        0 => from.to_string(),
        1 => format!("{from},{to}"),
        _ => format!("{from}-{to}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_round_trip() {
        for (text, count) in [("", 0), ("0", 1), ("0,1", 2), ("1,3-5,7", 5), ("0-99", 100)] {
            let read = parse(text, 100);
            assert_eq!((read.len(), write(&read)), (count, text.to_owned()));
        }
        assert_eq!(write(&parse("5-2,x,3-4000000000,1-", 6)), "3-5");
    }
}
