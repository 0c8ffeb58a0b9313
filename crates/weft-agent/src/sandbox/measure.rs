// SPDX-License-Identifier: Apache-2.0
//! What a pod keeps on disk, and what it may: the `sizeLimit` of each emptyDir, and all of them
//! together against the containers' limits of `ephemeral-storage`. Asked from time to time by
//! `worker`, which evicts; it never removes anything. (In memory the kernel holds the limit.)

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_base::limits::VOLUME_ENTRIES_MAX;

use super::host::volume_dir;
use crate::env;
use crate::pod::Pod;
use crate::pod::inside::EmptyDir;

/// The limits of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    volumes: Vec<Bound>,
    /// Bytes in all volumes, and the limit as it is written.
    total: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    name: Arc<str>,
    dir: PathBuf,
    limit: Option<(u64, String)>,
}

// === impl Bounds ===

impl Bounds {
    /// `None` when nothing is limited. `dir` is where the pod's files are.
    pub(crate) fn of(pod: &Pod, dir: &Path) -> Option<Self> {
        let on_disk = |e: &&EmptyDir| e.medium != "Memory";
        let volumes: Vec<Bound> = (pod.spec.volumes.iter())
            .filter_map(|v| Some((&v.name, v.empty_dir.as_ref().filter(on_disk)?)))
            .map(|(name, empty)| Bound {
                name: name.clone(),
                dir: volume_dir(dir, name),
                limit: limit(empty),
            })
            .collect();
        let limits = |c: &crate::pod::Container| {
            c.resources.limits.get("ephemeral-storage").and_then(env::quantity_milli)
        };
        let each: Vec<u64> = pod.programs().filter_map(limits).collect();
        let total = (!each.is_empty()).then(|| each.iter().sum::<u64>() / 1000);
        let any = total.is_some() || volumes.iter().any(|v| v.limit.is_some());
        (any && !volumes.is_empty()).then_some(Self { volumes, total })
    }

    /// Why the pod has to go. Reads directories: not for an async task's own thread.
    pub(crate) fn exceeded(&self) -> Option<String> {
        let mut all = 0;
        for volume in &self.volumes {
            if volume.limit.is_none() && self.total.is_none() {
                continue;
            }
            let used = used(&volume.dir);
            all += used;
            if let Some((limit, text)) = &volume.limit
                && used > *limit
            {
                let name = &volume.name;
                return Some(format!(
                    "Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "
                ));
            }
        }
        let total = self.total.filter(|total| all > *total)?;
        Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
        ))
    }
}

fn limit(empty: &EmptyDir) -> Option<(u64, String)> {
    let written = empty.size_limit.as_ref()?;
    let bytes = env::quantity_milli(written)? / 1000;
    let text = written.as_str().map_or_else(|| written.to_string(), str::to_owned);
    // Kubernetes' word for no limit.
    (bytes > 0).then_some((bytes, text))
}

/// Bytes of disk below a directory, each file once, links not followed. What comes after so many
/// entries that one look would take long is not counted.
fn used(dir: &Path) -> u64 {
    let (mut bytes, mut seen, mut linked) = (0, 0, BTreeSet::new());
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            seen += 1;
            if seen > VOLUME_ENTRIES_MAX {
                return bytes;
            }
            let Ok(meta) = entry.metadata() else { continue };
            if meta.nlink() > 1 && !meta.is_dir() && !linked.insert((meta.dev(), meta.ino())) {
                continue;
            }
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn bounds(volumes: Value, limits: Value, dir: &Path) -> Option<Bounds> {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"volumes": volumes,
            "containers": [{"name": "c", "resources": {"limits": limits}}, {"name": "d"}]}});
        Bounds::of(&weft_kinds::views::read(&pod).unwrap(), dir)
    }

    fn put(dir: &Path, volume: &str, file: &str, bytes: usize) {
        let at = volume_dir(dir, volume).join(file);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, vec![1; bytes]).unwrap();
    }

    #[test]
    fn nothing_is_measured_where_nothing_is_limited() {
        let volumes = json!([{"name": "a", "emptyDir": {}}, {"name": "c", "configMap": {}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]);
        assert_eq!(bounds(volumes, json!({"cpu": "1"}), Path::new("/nowhere")), None);
        let none = json!([{"name": "a", "emptyDir": {"sizeLimit": "0"}}]);
        assert_eq!(bounds(none, json!({}), Path::new("/nowhere")), None);
    }

    #[test]
    fn a_volume_over_its_limit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = json!([{"name": "a", "emptyDir": {"sizeLimit": "64Ki"}},
                             {"name": "b", "emptyDir": {}}]);
        let all = bounds(volumes, json!({}), dir.path()).unwrap();
        assert_eq!(all.exceeded(), None, "it is not there yet");
        put(dir.path(), "b", "large", 1 << 20);
        put(dir.path(), "a", "deep/x", 30 << 10);
        let deep = volume_dir(dir.path(), "a").join("deep");
        // The same file once more, and one that lies elsewhere.
        std::fs::hard_link(deep.join("x"), deep.join("y")).unwrap();
        std::os::unix::fs::symlink(volume_dir(dir.path(), "b"), deep.join("z")).unwrap();
        assert_eq!(all.exceeded(), None);
        put(dir.path(), "a", "more", 60 << 10);
        let why = all.exceeded().unwrap();
        assert_eq!(why, "Usage of EmptyDir volume \"a\" exceeds the limit \"64Ki\". ");
    }

    #[test]
    fn all_volumes_together_have_the_containers_limit() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = json!([{"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}}]);
        let limits = json!({"ephemeral-storage": "96Ki"});
        let all = bounds(volumes, limits, dir.path()).unwrap();
        put(dir.path(), "a", "x", 60 << 10);
        assert_eq!(all.exceeded(), None);
        put(dir.path(), "b", "x", 60 << 10);
        assert!(all.exceeded().unwrap().contains("total limit of containers 98304"));
    }
}
