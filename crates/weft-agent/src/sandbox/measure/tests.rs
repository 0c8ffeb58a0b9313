// SPDX-License-Identifier: Apache-2.0
//! What counts, and what programs do so that it does not.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use super::super::remove::tests::{as_ordinary, chain};
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

#[test]
fn a_file_beyond_the_longest_path_counts() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = json!([{"name": "a", "emptyDir": {"sizeLimit": "1Mi"}}]);
    let all = bounds(volumes, json!({}), dir.path()).unwrap();
    let volume = volume_dir(dir.path(), "a");
    std::fs::create_dir_all(&volume).unwrap();
    // 40 levels of 200 bytes each: no path leads there.
    let mut at = open_dir(CWD, &CString::new(volume.as_os_str().as_bytes()).unwrap()).unwrap();
    let name = CString::new("n".repeat(200)).unwrap();
    for _ in 0..40 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = open_dir(&at, &name).unwrap();
    }
    assert_eq!(all.exceeded(), None);
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = rustix::fs::openat(&at, c"large", flags, Mode::RUSR).unwrap();
    std::fs::File::from(file).write_all(&vec![1; 2 << 20]).unwrap();
    let why = all.exceeded().unwrap();
    assert_eq!(why, "Usage of EmptyDir volume \"a\" exceeds the limit \"1Mi\". ");
}

#[test]
fn what_is_too_deep_or_too_much_to_measure_is_over_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = json!([{"name": "a", "emptyDir": {"sizeLimit": "1Gi"}},
                         {"name": "b", "emptyDir": {}}]);
    let mut all = bounds(volumes, json!({}), dir.path()).unwrap();
    let (a, b) = (volume_dir(dir.path(), "a"), volume_dir(dir.path(), "b"));
    for volume in [&a, &b] {
        std::fs::create_dir_all(volume).unwrap();
        chain(volume, DEPTH_MAX - 1);
    }
    assert_eq!(all.exceeded(), None);
    let why = "EmptyDir volume \"a\" cannot be measured and so exceeds its limit: ";
    all.entries = DEPTH_MAX - 2;
    let many = format!("{why}it holds more than 254 files and directories. ");
    assert_eq!(all.exceeded().unwrap(), many);
    all.entries = VOLUME_ENTRIES_MAX;
    // What has no limit may be as it is.
    std::fs::rename(&b, a.join("b")).unwrap();
    std::fs::rename(&a, &b).unwrap();
    assert_eq!(all.exceeded(), None);
    std::fs::rename(&b, &a).unwrap();
    let deep = format!("{why}its directories are more than 256 levels deep. ");
    assert_eq!(all.exceeded().unwrap(), deep);
}

#[test]
fn what_may_not_be_read_is_over_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = json!([{"name": "a", "emptyDir": {}}]);
    let all = bounds(volumes, json!({"ephemeral-storage": "1Gi"}), dir.path()).unwrap();
    put(dir.path(), "a", "hidden/large", 1);
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let (a, hidden) = (volume_dir(dir.path(), "a"), volume_dir(dir.path(), "a").join("hidden"));
    let asked = || as_ordinary(|| all.exceeded());
    assert_eq!(asked(), None);
    // Neither listed nor entered; listed only; and the volume itself.
    for (path, mode) in [(&hidden, 0), (&hidden, 0o400), (&a, 0)] {
        set(path, mode);
        let why = asked().unwrap();
        assert!(why.ends_with("exceeds its limit: a directory in it may not be read. "), "{why}");
        set(path, 0o700);
    }
}
