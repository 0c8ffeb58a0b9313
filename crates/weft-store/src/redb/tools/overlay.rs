// SPDX-License-Identifier: Apache-2.0
//! A file as it is, with what is written to it kept in memory: `weft store check` lets redb repair
//! a log that a crash left open without changing a byte of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

const PAGE: u64 = 4096;

#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    written: Written,
}

/// What would have been written.
#[derive(Clone, Debug)]
pub(super) struct Written(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    pages: BTreeMap<u64, Vec<u8>>,
    len: u64,
    /// Up to here the file counts; beyond it, what is not written is zero.
    kept: u64,
}

// === impl Overlay ===

impl Overlay {
    pub fn open(path: &Path) -> io::Result<(Self, Written)> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let state = State { pages: BTreeMap::new(), len, kept: len };
        let written = Written(Arc::new(Mutex::new(state)));
        Ok((Self { file, written: written.clone() }, written))
    }

    fn page(&self, state: &State, page: u64) -> io::Result<Vec<u8>> {
        if let Some(data) = state.pages.get(&page) {
            return Ok(data.clone());
        }
        let mut data = vec![0; usize::try_from(PAGE).unwrap_or(0)];
        let start = page * PAGE;
        let there = usize::try_from(state.kept.saturating_sub(start).min(PAGE)).unwrap_or(0);
        if let Some(part) = data.get_mut(..there) {
            self.file.read_exact_at(part, start)?;
        }
        Ok(data)
    }

    /// Calls `f` for each part of `[offset, offset + len)` that lies in one page: the page, where
    /// in it, and where in the whole.
    fn parts(
        offset: u64,
        len: usize,
        mut f: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + u64::try_from(done).map_err(io::Error::other)?;
            let start = usize::try_from(at % PAGE).map_err(io::Error::other)?;
            let room = usize::try_from(PAGE).map_err(io::Error::other)? - start;
            let take = room.min(len - done);
            f(at / PAGE, start..start + take, done..done + take)?;
            done += take;
        }
        Ok(())
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.written.lock();
        let end = offset.saturating_add(u64::try_from(out.len()).map_err(io::Error::other)?);
        if end > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = out.len();
        Self::parts(offset, len, |page, within, whole| {
            let data = self.page(&state, page)?;
            if let (Some(to), Some(from)) = (out.get_mut(whole), data.get(within)) {
                to.copy_from_slice(from);
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.written.lock();
        if len < state.len {
            let cut = len / PAGE;
            // The page that is cut keeps its first part only.
            let mut last = self.page(&state, cut)?;
            let keep = usize::try_from(len % PAGE).map_err(io::Error::other)?;
            last.iter_mut().skip(keep).for_each(|byte| *byte = 0);
            state.pages.retain(|page, _| *page < cut);
            state.pages.insert(cut, last);
            state.kept = state.kept.min(len);
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.written.lock();
        Self::parts(offset, data.len(), |page, within, whole| {
            let mut old = self.page(&state, page)?;
            if let (Some(to), Some(from)) = (old.get_mut(within), data.get(whole)) {
                to.copy_from_slice(from);
            }
            state.pages.insert(page, old);
            Ok(())
        })
    }
}

// === impl Written ===

impl Written {
    pub fn pages(&self) -> usize {
        self.lock().pages.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
