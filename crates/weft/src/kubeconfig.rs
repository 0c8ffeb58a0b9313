// SPDX-License-Identifier: Apache-2.0
//! `weft kubeconfig`: what kubectl and Kubernetes clients need to find the API door.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, Result};

use crate::cli::KubeconfigArgs;
use crate::print;

pub fn write(args: &KubeconfigArgs) -> Result<()> {
    let text = render(&args.server);
    let Some(path) = &args.out else {
        print::print_text(&text);
        return Ok(());
    };
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    crate::say!("written; use it with\n  export KUBECONFIG={}", path.display());
    Ok(())
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
