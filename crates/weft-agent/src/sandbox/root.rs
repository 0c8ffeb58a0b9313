// SPDX-License-Identifier: Apache-2.0
//! What a container's program sees as its file system: the machine's, with mounts of its own.
//!
//! The root is a small file system in memory on which everything of the machine's root is bound,
//! so that mount points can be made anywhere without touching the machine. Where a mount point is
//! missing deeper down, the directory above it is mirrored in the same way. Called by `exec` in
//! the container's own mount namespace; nothing here is seen outside of it.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::spec::{ContainerSpec, Mount};

/// Where the machine's root is until the container's is complete.
const OLD: &str = "/.weft-old";
/// Room for files written into the root directory itself, and into mirrored directories.
const ROOT_BYTES: u64 = 64 << 20;
/// Room for shared memory, as container runtimes give it.
const SHM_BYTES: u64 = 64 << 20;
/// Entries of a directory that can be mirrored.
const MIRROR_MAX: usize = 4096;

/// Mounts made from here on are seen by nobody else.
pub(super) fn private() -> io::Result<()> {
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", all)?)
}

/// The PID namespace's own `/proc`.
pub(super) fn proc_at(path: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("proc", path, "proc", flags, None)?)
}

/// A directory in memory that everyone may write to.
pub(super) fn memory_at(path: &Path, bytes: u64) -> io::Result<()> {
    memory(path, bytes, 0o1777)
}

/// Builds the root and goes there.
///
/// # Errors
/// A sentence that names what could not be mounted.
pub(super) fn build(spec: &ContainerSpec) -> Result<(), String> {
    let failed = |what: &str, e: io::Error| format!("{what}: {e}");
    new_root(&spec.base).map_err(|e| failed("its root cannot be made", e))?;
    let own = || {
        proc_at(Path::new("/proc"))?;
        if Path::new("/dev/shm").is_dir() {
            memory_at(Path::new("/dev/shm"), SHM_BYTES)?;
        }
        for hidden in spec.hidden.iter().filter(|p| p.is_dir()) {
            memory(hidden, 4096, 0o555)?;
            remount_read_only(hidden)?;
        }
        // Among it are the control groups that limit it.
        all_read_only(|path| path.starts_with("/sys"))
    };
    own().map_err(|e| failed("its own /proc, /dev/shm and /sys cannot be mounted", e))?;
    let mut places = BTreeSet::new();
    for mount in &spec.mounts {
        let at = |e: io::Error| failed(&format!("no mount point {}", mount.target.display()), e);
        // What lies in another volume gets its place when that one is there.
        let within = |m: &Mount| m.target != mount.target && mount.target.starts_with(&m.target);
        if !spec.mounts.iter().any(within) {
            make_place(&mount.target, is_file(mount).map_err(at)?).map_err(at)?;
            places.insert(mount.target.clone());
        }
    }
    if spec.read_only_root {
        all_read_only(but_devices).map_err(|e| failed("its root cannot be made read-only", e))?;
    }
    for mount in &spec.mounts {
        bind(mount, places.contains(&mount.target))
            .map_err(|e| failed(&format!("{} cannot be mounted", mount.target.display()), e))?;
    }
    let gone = || {
        rustix::mount::unmount(OLD, UnmountFlags::DETACH)?;
        let _ = std::fs::remove_dir(OLD);
        Ok::<_, io::Error>(())
    };
    gone().map_err(|e| failed("the machine's root cannot be left", e))
}

/// A root in memory with everything of the machine's root but `/proc`.
fn new_root(base: &Path) -> io::Result<()> {
    private()?;
    memory(base, ROOT_BYTES, 0o755)?;
    let fd =
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    copy_entries(&fd?, Path::new("/"), base, |name| name == "proc")?;
    std::fs::create_dir(base.join("proc"))?;
    let old = base.join(OLD.trim_start_matches('/'));
    std::fs::create_dir(&old)?;
    rustix::process::pivot_root(base, &old)?;
    std::env::set_current_dir("/")
}

/// Binds every entry of a directory into another: `from` is the open directory, `shown` its path.
fn copy_entries(
    from: &OwnedFd,
    shown: &Path,
    to: &Path,
    skip: impl Fn(&str) -> bool,
) -> io::Result<()> {
    let through = PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd()));
    for (seen, entry) in std::fs::read_dir(&through)?.enumerate() {
        if seen >= MIRROR_MAX {
            let why = format!("{} has more than {MIRROR_MAX} entries", shown.display());
            return Err(io::Error::other(why));
        }
        let name = entry?.file_name();
        if name.to_str().is_some_and(&skip) {
            continue;
        }
        let (source, target) = (through.join(&name), to.join(&name));
        let Ok(meta) = std::fs::symlink_metadata(&source) else { continue };
        if meta.is_symlink() {
            symlink(std::fs::read_link(&source)?, &target)?;
            continue;
        }
        if meta.is_dir() {
            std::fs::create_dir(&target)?;
        } else {
            std::fs::File::create(&target)?;
        }
        // Below some directories there is what even root of a user namespace may not bind.
        if let Err(error) = rustix::mount::mount_bind_recursive(&source, &target)
            && error != rustix::io::Errno::ACCESS
        {
            return Err(io::Error::other(format!("{}: {error}", shown.join(&name).display())));
        }
    }
    Ok(())
}

/// Whether the thing to be mounted is a file; it must be there.
fn is_file(mount: &Mount) -> io::Result<bool> {
    let stat = rustix::fs::fstat(source(mount)?)?;
    Ok(!rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Opens what is to be mounted, in the machine's root. A path beneath a volume may not lead out
/// of it by any link.
fn source(mount: &Mount) -> io::Result<OwnedFd> {
    let old = Path::new(OLD).join(mount.source.strip_prefix("/").unwrap_or(&mount.source));
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let volume = rustix::fs::open(&old, flags, Mode::empty())?;
    match &mount.beneath {
        None => Ok(volume),
        Some(path) => {
            let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            Ok(rustix::fs::openat2(&volume, path, flags, Mode::empty(), within)?)
        }
    }
}

fn bind(mount: &Mount, has_place: bool) -> io::Result<()> {
    if !has_place {
        make_in_volume(&mount.target, is_file(mount)?)?;
    }
    let source = source(mount)?;
    let through = format!("/proc/self/fd/{}", source.as_raw_fd());
    let target = existing(&mount.target)?;
    rustix::mount::mount_bind_recursive(through.as_str(), &target)?;
    if mount.read_only { remount_read_only(&target) } else { Ok(()) }
}

/// A mount point within a volume is made there, as everywhere.
fn make_in_volume(target: &Path, file: bool) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if file {
        if let Some(dir) = target.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::File::create(target).map(drop)
    } else {
        std::fs::create_dir_all(target)
    }
}

/// Makes a mount point in the root being built, whatever is missing of its path.
fn make_place(target: &Path, file: bool) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    let mut have = PathBuf::from("/");
    let names: Vec<_> = target.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    for (index, name) in names.iter().enumerate() {
        let next = have.join(name);
        if next.is_dir() {
            have = next;
            continue;
        }
        // A link that leads nowhere, or nothing: it is made in a mirror of where it would be.
        let dir = std::fs::canonicalize(&have)?;
        if dir != Path::new("/") {
            mirror(&dir)?;
        }
        let _ = std::fs::remove_file(dir.join(name));
        let rest: PathBuf = names.iter().skip(index).collect();
        return make_in_volume(&dir.join(rest), file);
    }
    Ok(())
}

/// A directory's likeness in memory, with everything bound that is in it.
fn mirror(dir: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())?;
    let mode = std::fs::metadata(dir)?.permissions().mode() & 0o7777;
    memory(dir, ROOT_BYTES, mode)?;
    copy_entries(&fd, dir, dir, |_| false)
}

/// The mount point itself, behind links.
fn existing(target: &Path) -> io::Result<PathBuf> {
    std::fs::canonicalize(target)
}

fn memory(path: &Path, bytes: u64, mode: u32) -> io::Result<()> {
    let data = CString::new(format!("size={bytes},mode={mode:o}")).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount("tmpfs", path, "tmpfs", flags, data.as_c_str())?)
}

/// Every mount of the root; devices and `/proc` stay as they are.
fn but_devices(path: &Path) -> bool {
    !["/proc", "/dev", "/sys", OLD].iter().any(|kept| path.starts_with(kept))
}

fn all_read_only(chosen: impl Fn(&Path) -> bool) -> io::Result<()> {
    for line in std::fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let Some(path) = line.split(' ').nth(4).map(unescape) else { continue };
        if !chosen(Path::new(&path)) {
            continue;
        }
        match remount_read_only(Path::new(&path)) {
            // Covered by another mount, or gone meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            other => other?,
        }
    }
    Ok(())
}

/// The mount at this path, with the flags that it has.
fn remount_read_only(path: &Path) -> io::Result<()> {
    let has = rustix::fs::statvfs(path)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    use rustix::fs::StatVfsMountFlags as Has;
    for (is, flag) in [
        (Has::NOSUID, MountFlags::NOSUID),
        (Has::NODEV, MountFlags::NODEV),
        (Has::NOEXEC, MountFlags::NOEXEC),
        (Has::NOATIME, MountFlags::NOATIME),
        (Has::NODIRATIME, MountFlags::NODIRATIME),
        (Has::RELATIME, MountFlags::RELATIME),
    ] {
        if has.contains(is) {
            flags |= flag;
        }
    }
    Ok(rustix::mount::mount_remount(path, flags, "")?)
}

/// The octal escapes of `/proc/self/mountinfo`.
fn unescape(text: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.iter().fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
}
