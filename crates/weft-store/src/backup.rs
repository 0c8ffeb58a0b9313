// SPDX-License-Identifier: Apache-2.0
//! A backup: one file with all that is durable as of one revision, and the files that belong to it
//! (the authority's). Written from front to back, ended by a count and a SHA-256 of everything
//! before, so that a torn or changed one is told before anything is restored from it.
//!
//! Called by `weft store` and by a server's door. Knows no engine: it carries records.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use weft_base::limits;

use crate::{Class, Entry, Key, LeaseId, Revision, StoreError};

const MAGIC: &[u8; 8] = b"weftbak1";
/// Largest file that travels with a backup, bytes.
const FILE_BYTES_MAX: usize = 1024 * 1024;
const NAME_BYTES_MAX: usize = 255;

/// What a backup says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The revision that it shows.
    pub revision: Revision,
    /// Leases up to this one were given out.
    pub next_lease: u64,
    /// When it was made.
    pub wall_ms: u64,
}

/// One record of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Key(Key, Entry),
    Lease(LeaseId, Duration),
    /// Relative to the data directory, private to its owner.
    File(PathBuf, Vec<u8>),
}

/// How much is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub keys: u64,
    pub leases: u64,
    pub files: u64,
}

/// Writes one.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    sum: Sha256,
    counts: Counts,
}

/// Reads one, record by record; ends with an error when it is not whole.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    sum: Sha256,
    path: PathBuf,
    head: Head,
    counts: Counts,
    over: bool,
}

// === impl Writer ===

impl<W: Write> Writer<W> {
    /// # Errors
    /// When it cannot be written, here and below.
    pub fn new(out: W, head: Head) -> io::Result<Self> {
        let mut writer = Self { out, sum: Sha256::new(), counts: Counts::default() };
        writer.bytes(MAGIC)?;
        for word in [head.revision.0, head.next_lease, head.wall_ms] {
            writer.bytes(&word.to_le_bytes())?;
        }
        Ok(writer)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&mut self, item: &Item) -> io::Result<()> {
        match item {
            Item::Key(key, entry) => {
                self.counts.keys += 1;
                self.bytes(b"K")?;
                self.sized(key.as_bytes())?;
                let lease = entry.lease.map_or(0, |l| l.0);
                for word in [entry.created.0, entry.modified.0, lease] {
                    self.bytes(&word.to_le_bytes())?;
                }
                self.sized(&entry.value)
            }
            Item::Lease(id, ttl) => {
                self.counts.leases += 1;
                self.bytes(b"L")?;
                self.bytes(&id.0.to_le_bytes())?;
                let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                self.bytes(&ms.to_le_bytes())
            }
            Item::File(name, data) => {
                self.counts.files += 1;
                self.bytes(b"F")?;
                self.sized(name.as_os_str().as_encoded_bytes())?;
                self.sized(data)
            }
        }
    }

    /// Writes the end. What was written is not synced.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<(W, Counts)> {
        let counts = self.counts;
        self.bytes(b"E")?;
        for word in [counts.keys, counts.leases, counts.files] {
            self.bytes(&word.to_le_bytes())?;
        }
        let sum = self.sum.finalize();
        self.out.write_all(&sum)?;
        self.out.flush()?;
        Ok((self.out, counts))
    }

    fn sized(&mut self, data: &[u8]) -> io::Result<()> {
        let len = u32::try_from(data.len()).map_err(io::Error::other)?;
        self.bytes(&len.to_le_bytes())?;
        self.bytes(data)
    }

    fn bytes(&mut self, data: &[u8]) -> io::Result<()> {
        self.sum.update(data);
        self.out.write_all(data)
    }
}

// === impl Reader ===

impl Reader<BufReader<File>> {
    /// # Errors
    /// When the file cannot be read or is no backup of this form.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(|e| StoreError::path(path, e))?;
        Reader::new(BufReader::new(file), path)
    }

    /// Reads all of it once: whether it is whole, and how much is in it.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn verify(path: &Path) -> Result<(Head, Counts), StoreError> {
        let mut reader = Self::open(path)?;
        while reader.next()?.is_some() {}
        Ok((reader.head, reader.counts))
    }
}

impl<R: Read> Reader<R> {
    /// `path` is what errors name.
    ///
    /// # Errors
    /// When it is no backup of this form.
    pub fn new(from: R, path: &Path) -> Result<Self, StoreError> {
        let (sum, head) = (Sha256::new(), Head::default());
        let counts = Counts::default();
        let mut reader = Self { from, sum, path: path.to_owned(), head, counts, over: false };
        match reader.array::<8>()? {
            magic if magic == *MAGIC => {}
            magic if magic.starts_with(b"weftbak") => {
                return Err(reader.unfit("it was made by a newer weft; use that one"));
            }
            _ => return Err(reader.unfit("it was not made by `weft store backup`")),
        }
        let (revision, next_lease) = (Revision(reader.word()?), reader.word()?);
        reader.head = Head { revision, next_lease, wall_ms: reader.word()? };
        Ok(reader)
    }

    pub fn head(&self) -> Head {
        self.head
    }

    /// The next record; `None` at the end, after the checksum was found right.
    ///
    /// # Errors
    /// When it is not whole.
    #[allow(clippy::should_implement_trait)] // it fails, and ends for good when it does
    pub fn next(&mut self) -> Result<Option<Item>, StoreError> {
        if self.over {
            return Ok(None);
        }
        match self.array::<1>()?[0] {
            b'K' => {
                self.counts.keys += 1;
                let key = self.sized(limits::STORE_KEY_BYTES_MAX)?;
                let key = String::from_utf8(key).map_err(|_| self.unfit("a key is no text"))?;
                let (created, modified) = (Revision(self.word()?), Revision(self.word()?));
                let lease = Some(LeaseId(self.word()?)).filter(|lease| lease.0 != 0);
                let value = Bytes::from(self.sized(limits::STORE_VALUE_BYTES_MAX)?);
                let entry = Entry { value, created, modified, class: Class::Synced, lease };
                Ok(Some(Item::Key(key.into(), entry)))
            }
            b'L' => {
                self.counts.leases += 1;
                let (id, ttl) = (LeaseId(self.word()?), Duration::from_millis(self.word()?));
                Ok(Some(Item::Lease(id, ttl)))
            }
            b'F' => {
                self.counts.files += 1;
                let name = self.sized(NAME_BYTES_MAX)?;
                let name = String::from_utf8(name).map_err(|_| self.unfit("a name is no text"))?;
                Ok(Some(Item::File(self.inside(name)?, self.sized(FILE_BYTES_MAX)?)))
            }
            b'E' => self.end().map(|()| None),
            _ => Err(self.unfit("it is damaged")),
        }
    }

    fn end(&mut self) -> Result<(), StoreError> {
        let counted = Counts { keys: self.word()?, leases: self.word()?, files: self.word()? };
        let sum: [u8; 32] = self.sum.clone().finalize().into();
        let mut stated = [0; 32];
        self.fill(&mut stated)?;
        let mut more = [0];
        let trailing = self.from.read(&mut more).map_err(StoreError::storage)? > 0;
        self.over = true;
        match counted == self.counts && sum == stated && !trailing {
            true => Ok(()),
            false => Err(self.unfit("its checksum is wrong, so something in it was changed")),
        }
    }

    /// A name that stays below the data directory.
    fn inside(&self, name: String) -> Result<PathBuf, StoreError> {
        use std::path::Component;
        let path = PathBuf::from(name);
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        match plain && path.components().next().is_some() {
            true => Ok(path),
            false => Err(self.unfit("it names a file outside of the data directory")),
        }
    }

    fn sized(&mut self, max: usize) -> Result<Vec<u8>, StoreError> {
        let len = usize::try_from(u32::from_le_bytes(self.array()?)).unwrap_or(usize::MAX);
        if len > max {
            return Err(self.unfit("it is damaged: a record is larger than any can be"));
        }
        let mut data = vec![0; len];
        self.fill(&mut data)?;
        self.sum.update(&data);
        Ok(data)
    }

    fn word(&mut self) -> Result<u64, StoreError> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut data = [0; N];
        self.fill(&mut data)?;
        self.sum.update(data);
        Ok(data)
    }

    fn fill(&mut self, data: &mut [u8]) -> Result<(), StoreError> {
        self.from.read_exact(data).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.unfit("it ends in the middle"),
            _ => StoreError::path(&self.path, error),
        })
    }

    fn unfit(&self, why: &'static str) -> StoreError {
        StoreError::Backup { path: self.path.clone(), why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Vec<u8> {
        let head = Head { revision: Revision(9), next_lease: 4, wall_ms: 7 };
        let mut writer = Writer::new(Vec::new(), head).unwrap();
        for item in items() {
            writer.put(&item).unwrap();
        }
        writer.finish().unwrap().0
    }

    fn items() -> Vec<Item> {
        let entry = Entry {
            value: "v".into(),
            created: Revision(3),
            modified: Revision(8),
            class: Class::Synced,
            lease: Some(LeaseId(4)),
        };
        vec![
            Item::Lease(LeaseId(4), Duration::from_secs(10)),
            Item::Key("/a".into(), entry),
            Item::File("ca/root.pem".into(), b"pem".to_vec()),
        ]
    }

    fn read(bytes: &[u8]) -> Result<Vec<Item>, StoreError> {
        let mut reader = Reader::new(bytes, Path::new("b"))?;
        let mut out = Vec::new();
        while let Some(item) = reader.next()? {
            out.push(item);
        }
        Ok(out)
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        assert_eq!(read(&made()).unwrap(), items());
    }

    #[test]
    fn a_backup_that_is_cut_or_changed_anywhere_is_refused() {
        let whole = made();
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            assert!(read(&changed).is_err(), "changed at {at}");
        }
        assert!(read(&[&whole[..], b"x"].concat()).is_err());
    }

    #[test]
    fn no_file_is_named_outside_of_the_directory() {
        for name in ["../x", "/etc/x", "ca/../../x", ""] {
            let mut writer = Writer::new(Vec::new(), Head::default()).unwrap();
            writer.put(&Item::File(name.into(), Vec::new())).unwrap();
            let err = read(&writer.finish().unwrap().0).unwrap_err().to_string();
            assert!(err.contains("outside"), "{name}: {err}");
        }
    }

    #[test]
    fn a_newer_form_is_named_as_such() {
        let mut newer = made();
        newer[7] = b'2';
        assert!(read(&newer).unwrap_err().to_string().contains("newer weft"));
    }
}
