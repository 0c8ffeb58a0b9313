// SPDX-License-Identifier: Apache-2.0
//! Requests as the Consul door reads them: where one ends does not depend on how its bytes arrive,
//! and a reader that shares no line with ours finds the same end.

use weft_server::consul::fuzz::{Reader, Taken};

/// The first byte says in what steps the others arrive.
pub fn line(data: &[u8]) {
    let Some((step, bytes)) = data.split_first() else { return };
    let (whole, parts) = (read(bytes, bytes.len()), read(bytes, usize::from(*step)));
    let shown = |reader: &Reader| format!("{:?} {}", reader.all, reader.wrong);
    assert_eq!(shown(&whole), shown(&parts));
    whole.all.iter().for_each(judge);
}

fn read(bytes: &[u8], step: usize) -> Reader {
    let mut reader = Reader::default();
    bytes.chunks(step.max(1)).for_each(|piece| reader.read(piece));
    reader
}

fn judge(taken: &Taken) {
    let text = taken.head.strip_suffix(b"\r\n\r\n").expect("a head ends");
    let lines = lines(text);
    assert!(lines.iter().all(|l| !l.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))));
    let fields = |name: &str| {
        let named = |line: &&&[u8]| {
            let at = line.iter().position(|b| *b == b':').unwrap_or(line.len());
            line[..at].trim_ascii().eq_ignore_ascii_case(name.as_bytes())
        };
        lines
            .iter()
            .filter(named)
            .map(|line| line[name.len() + 1..].trim_ascii())
            .collect::<Vec<_>>()
    };
    let (lengths, codings) = (fields("content-length"), fields("transfer-encoding"));
    match taken.length {
        Some(length) => {
            assert!(codings.is_empty() && lengths.len() <= 1);
            let said =
                lengths.first().map_or("0", |text| std::str::from_utf8(text).expect("digits"));
            assert_eq!(said.parse(), Ok(length));
            assert!(taken.body == taken.sent && taken.body.len() as u64 == length);
        }
        None => {
            assert!(lengths.is_empty() && codings.len() == 1);
            assert!(codings[0].eq_ignore_ascii_case(b"chunked"));
            assert_eq!(plainly(&taken.sent).expect("plain chunks"), taken.body);
        }
    }
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    let (mut all, mut rest) = (Vec::new(), text);
    while let Some((line, more)) = cut(rest) {
        all.push(line);
        rest = more;
    }
    all.push(rest);
    all
}

/// Up to a line's end, and behind it.
fn cut(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.windows(2).position(|two| two == b"\r\n")?;
    Some((&text[..at], &text[at + 2..]))
}

/// As naive as a reader of chunks can be. Nothing may be left over.
fn plainly(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (line, more) = cut(rest)?;
        let digits = line.split(|b| *b == b';').next()?.trim_ascii();
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if size == 0 {
            rest = more;
            break;
        }
        body.extend_from_slice(more.get(..size)?);
        rest = more.get(size..)?.strip_prefix(b"\r\n")?;
    }
    loop {
        let (line, more) = cut(rest)?;
        rest = more;
        if line.is_empty() {
            return rest.is_empty().then_some(body);
        }
    }
}
