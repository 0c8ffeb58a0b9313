// SPDX-License-Identifier: Apache-2.0
//! What programs can leave behind, and that it goes.

use std::fs as files;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::*;

/// A chain of so many directories, and the last of them.
pub(crate) fn chain(dir: &Path, levels: usize) -> OwnedFd {
    let name = CString::new(dir.as_os_str().as_bytes()).unwrap();
    let mut at = open_dir(CWD, &name).unwrap();
    for _ in 0..levels {
        fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
        at = open_dir(&at, c"d").unwrap();
    }
    at
}

/// On a thread that may do no more than an ordinary user with its own files.
pub(crate) fn as_ordinary<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    let run = || {
        let none = CapabilitySet::empty();
        let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, sets).unwrap();
        run()
    };
    std::thread::scope(|s| s.spawn(run).join().unwrap())
}

#[test]
fn a_tree_deeper_than_any_path_goes() {
    let dir = tempfile::tempdir().unwrap();
    let pod = dir.path().join("pod");
    files::create_dir_all(pod.join("volumes/a")).unwrap();
    let end = chain(&pod.join("volumes/a"), 20_000);
    let file = OFlags::CREATE | OFlags::WRONLY;
    fs::openat(&end, c"last", file, Mode::RUSR).unwrap();
    drop(end);
    // A small stack is enough, and fewer descriptors than there are levels.
    let small = std::thread::Builder::new().stack_size(64 << 10);
    small.spawn(move || remove_tree(&pod).unwrap()).unwrap().join().unwrap();
    assert_eq!(files::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_wide_and_deep_tree_goes() {
    let dir = tempfile::tempdir().unwrap();
    let pod = dir.path().join("pod");
    for n in 0..30 {
        let mut at = pod.join(format!("b{n}"));
        for deep in 0..(OPEN_MAX * 2 + n) {
            at = at.join(format!("d{deep}"));
            files::create_dir_all(at.join("empty")).unwrap();
            files::write(at.join("x"), "x").unwrap();
        }
    }
    remove_tree(&pod).unwrap();
    assert_eq!(files::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn links_are_removed_and_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (pod, other) = (dir.path().join("pod"), dir.path().join("other"));
    files::create_dir_all(pod.join("volumes")).unwrap();
    files::create_dir_all(other.join("sub")).unwrap();
    files::write(other.join("sub/keep"), "x").unwrap();
    symlink(&other, pod.join("volumes/out")).unwrap();
    symlink("..", pod.join("volumes/up")).unwrap();
    symlink("nowhere", pod.join("volumes/none")).unwrap();
    let deep = chain(&pod.join("volumes"), OPEN_MAX * 2);
    fs::symlinkat(&other, &deep, c"out").unwrap();
    remove_tree(&pod).unwrap();
    assert!(!pod.exists());
    // Nor when the link is what is to be removed.
    symlink(&other, &pod).unwrap();
    remove_tree(&pod).unwrap();
    assert!(pod.symlink_metadata().is_err());
    assert_eq!(files::read_to_string(other.join("sub/keep")).unwrap(), "x");
}

#[test]
fn a_directory_that_becomes_a_link_is_not_entered() {
    let dir = tempfile::tempdir().unwrap();
    let (pod, other) = (dir.path().join("pod"), dir.path().join("other"));
    files::create_dir_all(pod.join("sub")).unwrap();
    files::create_dir_all(&other).unwrap();
    files::write(other.join("keep"), "x").unwrap();
    let name = CString::new(pod.as_os_str().as_bytes()).unwrap();
    let mut top = enter(CWD, &name).unwrap();
    // It is read as a directory, and is a link when it is opened.
    let is_sub = |e: &DirEntry| e.file_name() == c"sub" && e.file_type() == FileType::Directory;
    let entry = std::iter::from_fn(|| top.read()).map(Result::unwrap).find(is_sub).unwrap();
    files::remove_dir(pod.join("sub")).unwrap();
    symlink(&other, pod.join("sub")).unwrap();
    let mut remover = Remover { open: vec![Level { dir: top, name }], ..Remover::default() };
    assert!(remover.remove(&entry).unwrap());
    assert_eq!(remover.open.len(), 1, "it was not entered");
    assert!(pod.join("sub").symlink_metadata().is_err(), "the link is gone");
    assert_eq!(files::read_to_string(other.join("keep")).unwrap(), "x");
}

#[test]
fn rights_that_a_program_took_away_are_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    let pod = dir.path().join("pod");
    for (name, mode) in [("none", 0), ("read", 0o500), ("list", 0o400), ("write", 0o200)] {
        files::create_dir_all(pod.join(name).join("sub")).unwrap();
        files::write(pod.join(name).join("sub/x"), "x").unwrap();
        let rights = files::Permissions::from_mode(mode);
        files::set_permissions(pod.join(name), rights).unwrap();
    }
    // One is to be moved up.
    let end = chain(&pod, OPEN_MAX - 1);
    fs::mkdirat(&end, c"fixed", Mode::RUSR | Mode::XUSR).unwrap();
    as_ordinary(|| {
        assert!(files::read_dir(pod.join("none")).is_err(), "the rights count here");
        remove_tree(&pod).unwrap();
    });
    assert!(!pod.exists());
}

#[test]
fn what_cannot_go_is_told_and_the_rest_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    remove_tree(&dir.path().join("not/there")).unwrap();
    remove_tree(&dir.path().join("nothing")).unwrap();
    files::write(dir.path().join("file"), "x").unwrap();
    remove_tree(&dir.path().join("file")).unwrap();
    let (above, pod) = (dir.path().join("above"), dir.path().join("above/pod"));
    files::create_dir_all(pod.join("sub/sub")).unwrap();
    files::set_permissions(&above, files::Permissions::from_mode(0o500)).unwrap();
    let error = as_ordinary(|| remove_tree(&pod).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(files::read_dir(&pod).unwrap().count(), 0);
    files::set_permissions(&above, files::Permissions::from_mode(0o700)).unwrap();
}
