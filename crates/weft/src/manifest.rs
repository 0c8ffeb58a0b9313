// SPDX-License-Identifier: Apache-2.0
//! Manifest files for `weft up`, `apply` and `delete`: found, read, and every mistake in all of
//! them reported at once with file, line and field.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};
use weft_base::issue::{Issue, Severity};
use weft_kinds::decode::{self, Document, Format};
use weft_kinds::kind::KindId;

/// Annotation on a Deployment or its pod template: a command run once before anything starts.
pub const BUILD: &str = "weft.dev/build";
/// Annotation on a pod template: where its relative commands start from.
const WORKDIR: &str = "weft.dev/workdir";

const FILES_MAX: usize = 1_000;
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// One object of a file.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub kind: KindId,
    /// As written in the file: `networking.istio.io/v1alpha3`.
    pub version: &'static str,
    pub namespace: String,
    pub name: String,
    pub object: Value,
    /// `FILE:LINE`.
    pub place: String,
    /// The folder of its file.
    pub folder: PathBuf,
}

// === impl Manifest ===

impl Manifest {
    /// `deployment/user`, as kubectl names things it did something to.
    pub fn title(&self) -> String {
        format!("{}/{}", self.kind.row().singular, self.name)
    }

    /// The object's path in the API.
    pub fn path(&self) -> String {
        let at = (Some(self.namespace.as_str()), Some(self.name.as_str()));
        crate::client::objects::versioned_path(self.kind.row(), self.version, at.0, at.1)
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.object.get("metadata")?.get("annotations")?.get(name)?.as_str()
    }
}

/// Reads files and folders (their `*.yaml`, `*.yml`, `*.json`, sorted; not their sub-folders).
pub fn load(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    let mut mistakes = Vec::new();
    for file in files(paths)? {
        let text = read(&file)?;
        let format =
            if file.extension().is_some_and(|e| e == "json") { Format::Json } else { Format::Yaml };
        let (documents, issues) = decode::documents(&text, format);
        mistakes.extend(issues.0.iter().map(|i| mistake(&file, None, &text, i)));
        for document in documents {
            one(&file, &text, document, &mut manifests, &mut mistakes);
        }
    }
    if !mistakes.is_empty() {
        bail!(
            "{} in the manifests; nothing was started or changed:\n  {}",
            plural(mistakes.len(), "mistake"),
            mistakes.join("\n  ")
        );
    }
    if manifests.is_empty() {
        let named: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        bail!(
            "no object was found in {}; name a folder or file with Kubernetes YAML",
            named.join(", ")
        );
    }
    manifests.sort_by_key(|m| order(m.kind));
    Ok(manifests)
}

/// The folder of the first of these: where relative commands start from.
pub fn home(paths: &[PathBuf]) -> PathBuf {
    let first = paths.first().map_or(Path::new("."), PathBuf::as_path);
    let folder = if first.is_dir() { first } else { first.parent().unwrap_or(Path::new(".")) };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}

/// `1 mistake`, `2 mistakes`.
pub fn plural(n: usize, word: &str) -> String {
    if n == 1 { format!("{n} {word}") } else { format!("{n} {word}s") }
}

fn one(
    file: &Path,
    text: &[u8],
    document: Document,
    manifests: &mut Vec<Manifest>,
    mistakes: &mut Vec<String>,
) {
    if document.value.is_null() {
        return;
    }
    let (kind, version) = match decode::kind_of(&document.value) {
        Ok(found) => found,
        Err(issue) => return mistakes.push(mistake(file, Some(&document), text, &issue)),
    };
    for issue in crate::check::strict(kind, version, &document) {
        if issue.severity == Severity::Error {
            mistakes.push(mistake(file, Some(&document), text, &issue));
        } else {
            eprintln!("warning: {}", mistake(file, Some(&document), text, &issue));
        }
    }
    let meta = |field: &str| {
        let value = document.value.get("metadata").and_then(|m| m.get(field));
        value.and_then(Value::as_str).unwrap_or("").to_owned()
    };
    let mut namespace = meta("namespace");
    if kind.row().namespaced && namespace.is_empty() {
        namespace = "default".into();
    }
    manifests.push(Manifest {
        kind,
        version,
        namespace,
        name: meta("name"),
        place: format!("{}:{}", file.display(), document.line),
        folder: file.parent().map(Path::to_owned).unwrap_or_default(),
        object: document.value,
    });
}

/// `FILE:LINE: KIND NAME: FIELD: what is wrong`.
fn mistake(file: &Path, document: Option<&Document>, text: &[u8], issue: &Issue) -> String {
    let whole = std::str::from_utf8(text).unwrap_or("");
    let line = document
        .and_then(|d| decode::line_of(whole, d.line, &issue.path).or(Some(d.line)))
        .map_or_else(String::new, |l| format!(":{l}"));
    let title = document.map_or_else(String::new, |d| {
        let kind = d.value.get("kind").and_then(Value::as_str).unwrap_or("object");
        let name = d.value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("(no name)");
        format!("{kind} {name}: ")
    });
    format!("{}{line}: {title}{issue}", file.display())
}

fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" || !path.is_dir() {
            out.push(path.clone());
            continue;
        }
        let entries =
            fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut inside: Vec<PathBuf> = entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"))
            .collect();
        inside.sort();
        out.extend(inside);
    }
    if out.len() > FILES_MAX {
        bail!("{} manifest files; at most {FILES_MAX} are read at once", out.len());
    }
    Ok(out)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let source: Box<dyn std::io::Read> = if file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        let open = fs::File::open(file);
        Box::new(open.with_context(|| format!("cannot read {}", file.display()))?)
    };
    source.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        bail!("{} is larger than {} MiB", file.display(), FILE_BYTES_MAX >> 20);
    }
    Ok(text)
}

/// Namespaces first, then what others refer to, workloads last.
fn order(kind: KindId) -> u8 {
    match kind {
        KindId::Namespace | KindId::GatewayClass => 0,
        KindId::ServiceAccount | KindId::ConfigMap | KindId::Secret => 1,
        KindId::Service => 2,
        KindId::Pod
        | KindId::Deployment
        | KindId::ReplicaSet
        | KindId::StatefulSet
        | KindId::DaemonSet
        | KindId::Job
        | KindId::CronJob => 9,
        _ => 5,
    }
}

/// Makes relative commands of pod templates start from the manifest's folder.
pub fn set_workdir(manifest: &mut Manifest) {
    let folder = if manifest.folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        manifest.folder.as_path()
    };
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let template = match manifest.kind {
        KindId::Pod => Some(&mut manifest.object),
        KindId::Deployment
        | KindId::ReplicaSet
        | KindId::StatefulSet
        | KindId::DaemonSet
        | KindId::Job => manifest.object.pointer_mut("/spec/template"),
        KindId::CronJob => manifest.object.pointer_mut("/spec/jobTemplate/spec/template"),
        _ => None,
    };
    let annotations =
        template.and_then(|t| child(t, "metadata")).and_then(|m| child(m, "annotations"));
    let Some(annotations) = annotations.and_then(Value::as_object_mut) else { return };
    let own = annotations.get(WORKDIR).and_then(Value::as_str).unwrap_or("");
    let dir = folder.join(own).display().to_string();
    annotations.insert(WORKDIR.into(), Value::String(dir));
}

/// The map under a key, made when it is missing.
fn child<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = value.as_object_mut()?;
    Some(map.entry(key).or_insert_with(|| Value::Object(Map::new())))
}

/// `--image IMAGE=COMMAND` pairs. A relative program is one of the folder that weft was started
/// in, as a person at a shell expects; programs without a slash are looked for on PATH.
pub fn images(pairs: &[String]) -> Result<Vec<(String, String)>> {
    pairs
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((image, command)) if !image.is_empty() && !command.is_empty() => {
                Ok((image.to_owned(), absolute(command)?))
            }
            _ => bail!(crate::exit::Usage(format!(
                "--image {pair:?}: expected IMAGE=COMMAND, for example user:1.0=./user.py"
            ))),
        })
        .collect()
}

/// A command line whose relative program is made absolute.
fn absolute(command: &str) -> Result<String> {
    let (program, rest) = match command.split_once(' ') {
        Some((program, rest)) => (program, format!(" {rest}")),
        None => (command, String::new()),
    };
    if !program.contains('/') || program.starts_with('/') || program.starts_with('$') {
        return Ok(command.to_owned());
    }
    let here = std::env::current_dir().context("the current folder cannot be read")?;
    Ok(format!("{}{rest}", here.join(program).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_commands_start_from_the_current_folder() {
        let here = std::env::current_dir().unwrap();
        let pairs: Vec<String> = ["u:1=./u.py -v", "v=python3 v.py", "w=/bin/w"]
            .iter()
            .map(ToString::to_string)
            .collect();
        let made = images(&pairs).unwrap();
        assert_eq!(made[0], ("u:1".into(), format!("{}/./u.py -v", here.display())));
        assert_eq!(made[1].1, "python3 v.py");
        assert_eq!(made[2].1, "/bin/w");
        assert!(images(&["nonsense".into()]).unwrap_err().is::<crate::exit::Usage>());
    }
}
