// SPDX-License-Identifier: Apache-2.0
//! `weft kubeconfig`: what kubectl and Kubernetes clients need to find the API door.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::{fs, process};

use anyhow::{Context as _, Result};

use crate::cli::KubeconfigArgs;
use crate::print;

pub fn write(args: &KubeconfigArgs) -> Result<()> {
    let text = render(&args.server);
    let Some(path) = &args.out else {
        print::print_text(&text);
        return Ok(());
    };
    put(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    crate::say!("written; use it with\n  export KUBECONFIG={}", path.display());
    Ok(())
}

/// Replaces the file as a whole: a kubectl that reads it meanwhile sees the old one or the new one.
/// What is not a plain file (a link, `/dev/stdout`) is written through.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let special = fs::symlink_metadata(path).is_ok_and(|m| !m.is_file());
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".new-{}", process::id()));
    let target = if special { path } else { Path::new(&new) };
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(target)?;
    file.write_all(text.as_bytes())?;
    if special { Ok(()) } else { fs::rename(&new, path) }
}

pub fn render(server: &str) -> String {
    let server = server.trim_end_matches('/');
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         current-context: weft\n\
         clusters:\n\
         - name: weft\n\
         \x20 cluster:\n\
         \x20   server: {server}\n\
         contexts:\n\
         - name: weft\n\
         \x20 context:\n\
         \x20   cluster: weft\n\
         \x20   user: local\n\
         \x20   namespace: default\n\
         users:\n\
         - name: local\n\
         \x20 user: {{}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_reads_while_it_is_written_again_sees_a_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = render("http://127.0.0.1:6443");
        put(&path, &text).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..500).for_each(|_| put(&path, &text).unwrap()));
            while !writer.is_finished() {
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
            }
        });
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
    }
}
