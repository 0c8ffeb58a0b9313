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
use weft_kinds::kind::{Kind, KindId};

/// Annotation on a pod template: the program that stands in for its image.
pub const COMMAND: &str = "weft.dev/command";
/// Annotation on a Deployment: a command run once before anything starts.
pub const BUILD: &str = "weft.dev/build";
/// Set by `weft up`: the folder that relative commands start from.
pub const FOLDER: &str = "weft.dev/folder";

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
        let row = Kind { versions: std::slice::from_ref(&self.version), ..*self.kind.row() };
        crate::client::objects::resource_path(&row, Some(&self.namespace), Some(&self.name))
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
        let format = if file.extension().is_some_and(|e| e == "json") { Format::Json } else { Format::Yaml };
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
        bail!("no object was found in {}; name a folder or file with Kubernetes YAML", named.join(", "));
    }
    manifests.sort_by_key(|m| order(m.kind));
    Ok(manifests)
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
    let line = document
        .and_then(|d| decode::line_of(text, d.line, &issue.path).or(Some(d.line)))
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
        let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
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
        KindId::Pod | KindId::Deployment | KindId::ReplicaSet => 9,
        _ => 5,
    }
}

/// Turns relative commands of pod templates into absolute ones and applies `--image`.
pub fn resolve_commands(manifest: &mut Manifest, images: &[(String, String)]) {
    let folder = fs::canonicalize(if manifest.folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        &manifest.folder
    })
    .unwrap_or_else(|_| manifest.folder.clone());
    let template = match manifest.kind {
        KindId::Pod => Some(&mut manifest.object),
        KindId::Deployment | KindId::ReplicaSet => manifest.object.pointer_mut("/spec/template"),
        _ => None,
    };
    let Some(template) = template.and_then(Value::as_object_mut) else { return };
    let mapped = mapped_image(template, images);
    let meta = template.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Some(meta) = meta.as_object_mut() else { return };
    let annotations = meta.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
    let Some(annotations) = annotations.as_object_mut() else { return };
    if let Some(command) = mapped {
        annotations.insert(COMMAND.into(), Value::String(command));
    }
    annotations.insert(FOLDER.into(), Value::String(folder.display().to_string()));
}

fn mapped_image(template: &Map<String, Value>, images: &[(String, String)]) -> Option<String> {
    let containers = template.get("spec")?.get("containers")?.as_array()?;
    let image = containers.first()?.get("image")?.as_str()?;
    images.iter().find(|(name, _)| name == image).map(|(_, command)| command.clone())
}
