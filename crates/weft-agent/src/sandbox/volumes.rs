// SPDX-License-Identifier: Apache-2.0
//! A pod's volumes: what is in them, as a pure plan, and how it is written so that a reader never
//! sees half an update (a link that is replaced, as kubelet does it). Called by `cell`.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::env::{self, Facts};
use crate::pod::inside::{ConfigMapSource, DownwardApi, KeyToPath, SecretSource, Volume};
use crate::pod::{DesiredPod, Objects, Pod};

/// Why a volume cannot be had (`CreateContainerConfigError`).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum VolumeError {
    #[error("volume {volume}: there is no {kind} {name:?} in the pod's namespace; create it")]
    NoObject { volume: String, kind: &'static str, name: String },
    #[error("volume {volume}: {kind} {name:?} has no key {key:?}")]
    NoKey { volume: String, kind: &'static str, name: String, key: String },
    #[error("volume {volume}: the path {path:?} must be relative and without `..`")]
    Path { volume: String, path: String },
    #[error("volume {volume}: fieldPath {path:?} is not one that pods have")]
    Field { volume: String, path: String },
    #[error(
        "volume {volume}: a {kind} volume is not had here; emptyDir, configMap, secret, \
         downwardAPI, projected and hostPath are"
    )]
    Kind { volume: String, kind: String },
    #[error("volume {volume}: hostPath {path:?} lies in weft's own data; choose another directory")]
    OwnData { volume: String, path: String },
    #[error("volume {volume}: hostPath {path:?} is not there or of another type; make it")]
    NoHostPath { volume: String, path: String },
    #[error("volume {volume}: sizeLimit is no quantity of bytes")]
    Size { volume: String },
}

/// What is in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Files(Files),
    /// Empty at first; in memory with this many bytes at most.
    Empty {
        memory: Option<u64>,
    },
    Host(PathBuf),
}

/// Files by their path in the volume, with their modes.
pub(crate) type Files = BTreeMap<String, (Arc<[u8]>, u32)>;

/// Of a volume in memory whose limit is not said.
const MEMORY_BYTES: u64 = 256 << 20;
const DEFAULT_MODE: u32 = 0o644;

/// All volumes of a pod. `hidden` are directories that no pod may have.
///
/// # Errors
/// When one refers to what is not there.
pub(crate) fn plan(
    facts: &Facts<'_>,
    hidden: &[PathBuf],
) -> Result<BTreeMap<Arc<str>, Content>, VolumeError> {
    let mut out = BTreeMap::new();
    for volume in &facts.pod.spec.volumes {
        out.insert(volume.name.clone(), content(volume, facts, hidden)?);
    }
    Ok(out)
}

fn content(volume: &Volume, facts: &Facts<'_>, hidden: &[PathBuf]) -> Result<Content, VolumeError> {
    let mut writer = Writer { volume, files: Files::new() };
    if let Some(empty) = &volume.empty_dir {
        let size = || VolumeError::Size { volume: volume.name.to_string() };
        let limit = match &empty.size_limit {
            Some(value) => Some(env::quantity_milli(value).ok_or_else(size)? / 1000),
            None => None,
        };
        let memory = (empty.medium == "Memory").then(|| limit.unwrap_or(MEMORY_BYTES));
        return Ok(Content::Empty { memory });
    }
    if let Some(host) = &volume.host_path {
        return host_path(volume, host, hidden);
    }
    if let Some(source) = &volume.config_map {
        writer.config_map(source, facts.desired, source.default_mode)?;
    } else if let Some(source) = &volume.secret {
        writer.secret(source, facts.desired, source.default_mode)?;
    } else if let Some(source) = &volume.downward_api {
        writer.downward(source, facts, source.default_mode)?;
    } else if let Some(projected) = &volume.projected {
        for source in &projected.sources {
            if let Some(source) = &source.config_map {
                writer.config_map(source, facts.desired, projected.default_mode)?;
            }
            if let Some(source) = &source.secret {
                writer.secret(source, facts.desired, projected.default_mode)?;
            }
            if let Some(source) = &source.downward_api {
                writer.downward(source, facts, projected.default_mode)?;
            }
        }
    } else if let Some(kind) = volume.other.keys().next() {
        return Err(VolumeError::Kind { volume: volume.name.to_string(), kind: kind.clone() });
    } else {
        return Ok(Content::Empty { memory: None });
    }
    Ok(Content::Files(writer.files))
}

fn host_path(
    volume: &Volume,
    host: &crate::pod::inside::HostPath,
    hidden: &[PathBuf],
) -> Result<Content, VolumeError> {
    let (name, path) = (volume.name.to_string(), host.path.clone());
    let missing = || VolumeError::NoHostPath { volume: name.clone(), path: path.clone() };
    if host.kind == "DirectoryOrCreate" {
        let _ = std::fs::create_dir_all(&host.path);
    }
    let real = std::fs::canonicalize(&host.path).map_err(|_| missing())?;
    let own = |dir: &PathBuf| real.starts_with(dir) || dir.starts_with(&real);
    if hidden.iter().any(own) {
        return Err(VolumeError::OwnData { volume: name, path });
    }
    let fits = match host.kind.as_str() {
        "Directory" | "DirectoryOrCreate" => real.is_dir(),
        "File" | "FileOrCreate" => real.is_file(),
        _ => true,
    };
    if fits { Ok(Content::Host(real)) } else { Err(missing()) }
}

struct Writer<'a> {
    volume: &'a Volume,
    files: Files,
}

// === impl Writer ===

impl Writer<'_> {
    fn config_map(
        &mut self,
        source: &ConfigMapSource,
        desired: &DesiredPod,
        mode: Option<u32>,
    ) -> Result<(), VolumeError> {
        let from = ("ConfigMap", &*source.name, source.optional);
        self.object(from, &desired.configs.config_maps, &source.items, mode)
    }

    fn secret(
        &mut self,
        source: &SecretSource,
        desired: &DesiredPod,
        mode: Option<u32>,
    ) -> Result<(), VolumeError> {
        let from = ("Secret", &*source.secret_name, source.optional);
        self.object(from, &desired.configs.secrets, &source.items, mode)
    }

    fn object(
        &mut self,
        (kind, name, optional): (&'static str, &str, bool),
        objects: &Objects,
        items: &[KeyToPath],
        mode: Option<u32>,
    ) -> Result<(), VolumeError> {
        let volume = self.volume.name.to_string();
        let Some(data) = objects.get(name) else {
            if optional {
                return Ok(());
            }
            return Err(VolumeError::NoObject { volume, kind, name: name.to_owned() });
        };
        if items.is_empty() {
            for (key, value) in data {
                self.add(key, value.bytes(), mode)?;
            }
        }
        for item in items {
            let Some(value) = data.get(&item.key) else {
                if optional {
                    continue;
                }
                let (name, key) = (name.to_owned(), item.key.to_string());
                return Err(VolumeError::NoKey { volume, kind, name, key });
            };
            self.add(&item.path, value.bytes(), item.mode.or(mode))?;
        }
        Ok(())
    }

    fn downward(
        &mut self,
        source: &DownwardApi,
        facts: &Facts<'_>,
        mode: Option<u32>,
    ) -> Result<(), VolumeError> {
        for item in &source.items {
            let unknown = |path: &str| VolumeError::Field {
                volume: self.volume.name.to_string(),
                path: path.to_owned(),
            };
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => downward_value(&field.field_path, facts)
                    .ok_or_else(|| unknown(&field.field_path))?,
                (None, Some(wanted)) => {
                    env::resource_text(wanted, facts).ok_or_else(|| unknown(&wanted.resource))?
                }
                (None, None) => String::new(),
            };
            self.add(&item.path, text.into_bytes().into(), item.mode.or(mode))?;
        }
        Ok(())
    }

    fn add(&mut self, path: &str, data: Arc<[u8]>, mode: Option<u32>) -> Result<(), VolumeError> {
        let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
        if path.is_empty() || path.starts_with("..") || !Path::new(path).components().all(plain) {
            let volume = self.volume.name.to_string();
            return Err(VolumeError::Path { volume, path: path.to_owned() });
        }
        self.files.insert(path.to_owned(), (data, mode.unwrap_or(DEFAULT_MODE) & 0o777));
        Ok(())
    }
}

/// A field as a file has it: maps whole, one quoted line for each key.
fn downward_value(path: &str, facts: &Facts<'_>) -> Option<String> {
    let meta = &facts.pod.metadata;
    let map = match path {
        "metadata.labels" => &meta.labels,
        "metadata.annotations" => &meta.annotations,
        _ => return env::field_value(path, facts),
    };
    let lines: Vec<String> = map.iter().map(|(k, v)| format!("{k}={:?}", &**v)).collect();
    Some(lines.join("\n"))
}

/// The volumes' modes leave out what the pod's user is not: with a group of its own, a volume's
/// files are that group's.
pub(crate) fn group_of(pod: &Pod, rootless: bool) -> Option<u32> {
    pod.spec.security_context.fs_group.filter(|_| !rootless)
}

/// Writes files so that they change all at once: `..data` is a link to a directory with this
/// content, and every name is a link through it. Nothing is done when it has this content.
pub(crate) fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    let data = dir.join("..data");
    let old = std::fs::read_link(&data).ok();
    if let Some(old) = &old
        && same(&dir.join(old), files)
    {
        return Ok(());
    }
    make_dir(dir, 0o755)?;
    let fresh = format!("..{}", uuid::Uuid::now_v7().simple());
    let home = dir.join(&fresh);
    make_dir(&home, 0o755)?;
    for (path, (bytes, mode)) in files {
        let file = home.join(path);
        if let Some(above) = file.parent() {
            std::fs::create_dir_all(above)?;
        }
        write_file(&file, bytes, *mode, group)?;
    }
    let link = dir.join("..data.new");
    let _ = std::fs::remove_file(&link);
    symlink(&fresh, &link)?;
    std::fs::rename(&link, &data)?;
    let tops: Vec<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for top in &tops {
        let name = dir.join(top);
        if std::fs::symlink_metadata(&name).is_err() {
            symlink(Path::new("..data").join(top), &name)?;
        }
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(&&*name) {
            std::fs::remove_file(entry.path())?;
        }
    }
    match old {
        Some(old) => std::fs::remove_dir_all(dir.join(old)),
        None => Ok(()),
    }
}

fn write_file(path: &Path, bytes: &[u8], mode: u32, group: Option<u32>) -> io::Result<()> {
    use std::io::Write;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    let mut mode = mode;
    if let Some(group) = group {
        std::os::unix::fs::fchown(&file, None, Some(group))?;
        // The group may read what its owner may.
        mode |= (mode & 0o400) >> 3;
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// A directory that any user of the pod may write to.
pub(crate) fn make_empty(dir: &Path, group: Option<u32>) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut mode = 0o777;
    if let Some(group) = group {
        std::os::unix::fs::chown(dir, None, Some(group))?;
        mode = 0o2777;
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

/// Whether a directory has exactly this content.
fn same(home: &Path, files: &Files) -> bool {
    let equal = |(path, (bytes, _)): (&String, &(Arc<[u8]>, u32))| {
        std::fs::read(home.join(path)).is_ok_and(|found| *found == **bytes)
    };
    count(home) == files.len() && files.iter().all(equal)
}

fn count(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { count(&e.path()) } else { 1 })
        .sum()
}

#[cfg(test)]
mod tests;
