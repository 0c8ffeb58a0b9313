// SPDX-License-Identifier: Apache-2.0
//! The authority's files: private modes, written whole or not at all, links not followed.
//! Called by `ca`, and by `join` for a host's own key.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::CaError;
use crate::svid::BUNDLE_ROOTS_MAX;

/// Largest file that is read here, bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Makes the directory with mode 0700; an existing one must be private too.
pub(crate) fn make_private_dir(dir: &Path) -> Result<(), CaError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| io(dir, "the directory cannot be made", source))?;
    let meta = std::fs::symlink_metadata(dir).map_err(|e| io(dir, "it cannot be looked at", e))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .map_err(|e| io(dir, "it is open to others and cannot be made private", e))?;
    }
    Ok(())
}

/// The text of a file that only its owner may read; `None` when there is none.
pub(crate) fn read_private(path: &Path) -> Result<Option<String>, CaError> {
    let Some((text, mode)) = read(path)? else { return Ok(None) };
    if mode & 0o077 == 0 {
        Ok(Some(text))
    } else {
        Err(CaError::Exposed { path: path.to_owned(), mode: mode & 0o777 })
    }
}

/// The certificates in a PEM file; none when there is no file.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let Some((text, _)) = read(path)? else { return Ok(Vec::new()) };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let all = all.map_err(|e| super::damaged(path, e))?;
    if all.len() > BUNDLE_ROOTS_MAX {
        return Err(super::damaged(path, format!("it holds {} roots", all.len())));
    }
    Ok(all)
}

/// The one key and the one certificate in a PEM text.
pub(super) fn key_and_certificate(
    text: &str,
) -> Result<(PrivatePkcs8KeyDer<'static>, CertificateDer<'static>), pem::Error> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())?;
    Ok((key, CertificateDer::from_pem_slice(text.as_bytes())?))
}

/// Removes a file; one that is not there is gone.
pub(crate) fn remove(path: &Path) -> Result<(), CaError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io(path, "it cannot be removed", e)),
        _ => Ok(()),
    }
}

/// Writes a file whole: a temporary one beside it, synced, then renamed.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    // The whole name: what differs in its ending only is another file.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let refused = |source| io(temporary, "it cannot be written", source);
    remove(temporary)?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(no_follow())
        .open(temporary)
        .map_err(refused)?;
    file.write_all(text.as_bytes()).map_err(refused)?;
    file.sync_all().map_err(refused)?;
    std::fs::rename(temporary, path).map_err(|e| io(path, "it cannot be put in place", e))?;
    let parent = path.parent().unwrap_or(Path::new("."));
    let sync = std::fs::File::open(parent).and_then(|dir| dir.sync_all());
    sync.map_err(|e| io(parent, "the directory cannot be synced", e))
}

fn read(path: &Path) -> Result<Option<(String, u32)>, CaError> {
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(no_follow()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(path, "it cannot be opened (links are not followed)", e)),
    };
    let meta = file.metadata().map_err(|e| io(path, "it cannot be looked at", e))?;
    let mut text = String::new();
    let got = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
    got.map_err(|e| io(path, "it cannot be read", e))?;
    Ok(Some((text, meta.permissions().mode())))
}

fn no_follow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn io(path: &Path, what: &'static str, source: std::io::Error) -> CaError {
    CaError::Io { path: path.to_owned(), what, source }
}
