// SPDX-License-Identifier: Apache-2.0
//! Removes a directory that programs of a pod wrote into, whatever they made of it: deeper than
//! any path or stack, without the right to read it, with links out of it. Called by `host`, on a
//! thread that may wait; it follows no link and holds few descriptors. `measure` walks like it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Directories that are open at a time. What lies deeper is moved up first.
const OPEN_MAX: usize = 32;
/// What its owner needs to empty a directory.
const OURS: Mode = Mode::RWXU;

/// A directory, and nothing else that is in its place by now.
pub(super) fn open_dir(above: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(above, name, flags, Mode::empty())
}

/// Whether an entry is the directory itself or the one above.
pub(super) fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Removes a directory with all that is in it, or a file. It may be gone already.
///
/// # Errors
/// The first one, after everything else is removed. Nobody may write into it meanwhile: it goes
/// on for as long as it finds something that it can remove.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is nothing above it"));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = match fs::open(above, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        above => above?,
    };
    let name = CString::new(name.as_bytes())?;
    let top = match enter(&above, &name) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Ok(fs::unlinkat(&above, &name, AtFlags::empty())?);
        }
        top => top?,
    };
    let mut remover = Remover { open: vec![Level { dir: top, name }], ..Remover::default() };
    loop {
        remover.pass();
        let Some(top) = remover.open.first_mut() else { return Ok(()) };
        match fs::unlinkat(&above, &top.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // What was moved up is there, or what a directory did not show while it shrank.
            Err(Errno::NOTEMPTY | Errno::EXIST) if remover.progress => top.dir.rewind(),
            Err(e) => return Err(remover.failed.unwrap_or(e).into()),
        }
    }
}

#[derive(Default)]
struct Remover {
    /// From the top down to where it is.
    open: Vec<Level>,
    /// Something was removed or moved up in this pass.
    progress: bool,
    failed: Option<Errno>,
}

struct Level {
    dir: Dir,
    /// In the directory above.
    name: CString,
}

// === impl Remover ===

impl Remover {
    /// Removes what it finds beneath the top, and returns to it.
    fn pass(&mut self) {
        (self.progress, self.failed) = (false, None);
        while let Some(level) = self.open.last_mut() {
            match level.dir.read() {
                Some(Ok(entry)) if is_dots(entry.file_name()) => {}
                Some(Ok(entry)) => {
                    let done = self.remove(&entry);
                    self.note(done);
                }
                Some(Err(e)) => self.note(Err(e)),
                None if self.open.len() > 1 => {
                    let done = self.leave();
                    self.note(done.map(|()| true));
                }
                None => return,
            }
        }
    }

    /// Removes a file; enters a directory, or moves it up. Whether there is one entry less here.
    fn remove(&mut self, entry: &DirEntry) -> Result<bool, Errno> {
        let (Some(top), Some(at)) = (self.open.first(), self.open.last()) else {
            return Ok(false);
        };
        let (name, at, top) = (entry.file_name(), at.dir.fd()?, top.dir.fd()?);
        let maybe_dir = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if maybe_dir && self.open.len() == OPEN_MAX && is_dir(at, name)? {
            return raise(at, name, top).map(|()| true);
        }
        let opened = if maybe_dir { enter(at, name) } else { Err(Errno::NOTDIR) };
        match opened {
            Ok(dir) => {
                self.open.push(Level { dir, name: name.to_owned() });
                Ok(false)
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                fs::unlinkat(at, name, AtFlags::empty()).map(|()| true)
            }
            Err(e) => Err(e),
        }
    }

    /// Goes up from a directory that was read to its end.
    fn leave(&mut self) -> Result<(), Errno> {
        let Some((level, above)) = self.open.pop().zip(self.open.last()) else { return Ok(()) };
        fs::unlinkat(above.dir.fd()?, &level.name, AtFlags::REMOVEDIR)
    }

    fn note(&mut self, done: Result<bool, Errno>) {
        match done {
            Ok(progress) => self.progress |= progress,
            // Why it is not empty was said before, or the next pass finds it.
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => self.failed = self.failed.or(Some(e)),
        }
    }
}

/// Opens a directory so that it can be emptied.
fn enter(above: impl AsFd, name: &CStr) -> Result<Dir, Errno> {
    let opened = match open_dir(&above, name) {
        Err(Errno::ACCESS) => {
            make_ours(&above, name)?;
            open_dir(&above, name)
        }
        opened => opened,
    };
    let dir = opened?;
    if !Mode::from_raw_mode(fs::fstat(&dir)?.st_mode).contains(OURS) {
        // Where that fails, what is in it cannot be removed either, and says why.
        let _ = fs::fchmod(&dir, OURS);
    }
    Dir::new(dir)
}

/// Moves a directory up to the top, so that nothing is ever far away from it.
fn raise(above: impl AsFd, name: &CStr, top: impl AsFd) -> Result<(), Errno> {
    let fresh = uuid::Uuid::now_v7().to_string();
    match fs::renameat(&above, name, &top, &*fresh) {
        // Its owner, too, may move it only when he may write into it.
        Err(Errno::ACCESS) => {
            make_ours(&above, name)?;
            fs::renameat(&above, name, &top, &*fresh)
        }
        done => done,
    }
}

/// Gives the owner of a directory all rights. (`fchmodat` alone would follow a link.)
fn make_ours(above: impl AsFd, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = fs::openat(above, name, flags, Mode::empty())?;
    let open = format!("/proc/self/fd/{}", dir.as_raw_fd());
    fs::chmodat(CWD, open, OURS, AtFlags::empty())
}

fn is_dir(above: impl AsFd, name: &CStr) -> Result<bool, Errno> {
    let stat = fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
pub(super) mod tests;
