// SPDX-License-Identifier: Apache-2.0
//! The few parts of tar that a snapshot needs: plain files with short names. Pure.

const BLOCK: usize = 512;
/// Files of one archive.
const FILES_MAX: usize = 16;

/// An archive of files.
pub fn write(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, bytes) in files {
        out.extend_from_slice(&head(name, bytes.len()));
        out.extend_from_slice(bytes);
        out.resize(out.len().div_ceil(BLOCK) * BLOCK, 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

/// The files of an archive.
///
/// # Errors
/// When it is none, or ends early.
pub fn read(mut bytes: &[u8]) -> Result<Vec<(String, &[u8])>, &'static str> {
    let mut out = Vec::new();
    loop {
        let (head, rest) = bytes.split_at_checked(BLOCK).ok_or("the archive ends early")?;
        if head.iter().all(|b| *b == 0) {
            return Ok(out);
        }
        if out.len() >= FILES_MAX {
            return Err("the archive has too many files");
        }
        let sum = number(head, 148, 8).ok_or("the archive's head is no tar")?;
        if sum != checksum(head) {
            return Err("the archive's head is damaged");
        }
        let name = text(head, 0, 100).ok_or("a file's name is no text")?;
        let size = number(head, 124, 12).and_then(|size| usize::try_from(size).ok());
        let size = size.ok_or("a file's size is no number")?;
        let padded = size.checked_next_multiple_of(BLOCK).ok_or("a file is too large")?;
        let (body, rest) = rest.split_at_checked(padded).ok_or("the archive ends early")?;
        let plain = head.get(156).is_some_and(|kind| matches!(kind, 0 | b'0'));
        if plain {
            out.push((name, body.get(..size).unwrap_or_default()));
        }
        bytes = rest;
    }
}

// === helpers ===

fn head(name: &str, size: usize) -> [u8; BLOCK] {
    let mut head = [0_u8; BLOCK];
    let mut put = |at: usize, text: &str| {
        if let Some(field) = head.get_mut(at..at + text.len()) {
            field.copy_from_slice(text.as_bytes());
        }
    };
    put(0, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum = checksum(&head);
    if let Some(field) = head.get_mut(148..156) {
        field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    head
}

/// The sum of a head's bytes, its own field counted as spaces.
fn checksum(head: &[u8]) -> u64 {
    let of = |(at, b): (usize, &u8)| u64::from(if (148..156).contains(&at) { b' ' } else { *b });
    head.iter().enumerate().map(of).sum()
}

fn text(head: &[u8], at: usize, len: usize) -> Option<String> {
    let field = head.get(at..at + len)?;
    let end = field.iter().position(|b| *b == 0).unwrap_or(len);
    String::from_utf8(field.get(..end)?.to_vec()).ok()
}

fn number(head: &[u8], at: usize, len: usize) -> Option<u64> {
    let text = text(head, at, len)?;
    u64::from_str_radix(text.trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let long = vec![7_u8; 1000];
        let archive = write(&[("meta.json", b"{}"), ("state.bin", &long), ("empty", b"")]);
        assert_eq!(archive.len() % BLOCK, 0);
        let files = read(&archive).unwrap();
        assert_eq!(files[0], ("meta.json".into(), &b"{}"[..]));
        assert_eq!(files[1], ("state.bin".into(), &long[..]));
        assert_eq!(files[2], ("empty".into(), &b""[..]));
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        assert!(read(b"").is_err());
        assert!(read(&[1; 600]).is_err());
        let mut archive = write(&[("a", &[7; 100])]);
        archive[0] = b'b';
        assert!(read(&archive).is_err(), "the head does not fit its sum");
        let archive = write(&[("a", &[7; 100])]);
        assert!(read(&archive[..600]).is_err(), "cut short");
    }
}
