// SPDX-License-Identifier: Apache-2.0
//! Which data directory a run uses, and which process holds one. The directory itself (mode 0700,
//! `LOCK`, `VERSION`) is `weft_store::DataDir`.
//!
//! `store/`, `ca/`, `lastgood/`, `logs/`, `run/` (sockets).

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use weft_base::name::slug;

/// The data directory of a run: the given one, or one named after the manifests' folder.
pub fn location(given: Option<&Path>, manifests: Option<&Path>, state_home: &Path) -> PathBuf {
    if let Some(path) = given {
        // Hints that name it hold in every folder.
        return std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    }
    let name = match manifests.map(|p| fs::canonicalize(p).unwrap_or_else(|_| p.to_owned())) {
        Some(path) => {
            let last = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let hash = weft_base::name::fnv1a(path.as_os_str().as_encoded_bytes());
            format!("{}-{:08x}", slug(&last.unwrap_or_default()), hash & 0xffff_ffff)
        }
        None => "server".into(),
    };
    state_home.join("weft").join(name)
}

/// The process that holds a data directory's lock, if one does.
pub fn holder(path: &Path) -> Option<u32> {
    let mut file = File::open(path.join("LOCK")).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_have_data_of_their_own() {
        let home = Path::new("/state");
        let a = location(None, Some(Path::new("/a/shop")), home);
        let b = location(None, Some(Path::new("/b/shop")), home);
        assert_ne!(a, b);
        assert!(a.to_string_lossy().starts_with("/state/weft/shop-"));
        assert_eq!(location(Some(Path::new("/x")), None, home), Path::new("/x"));
    }
}
