// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask schemas [--check]`: brings the upstream schemas of the served kinds (Kubernetes
//! OpenAPI v3, Gateway API and Istio CRDs) from their Go modules, trims them to what is served
//! and writes them compressed into `crates/weft-kinds/schemas`. With `--check` it only compares.
//!
//! Needs `go` and the Go module proxy; the build and the tests of weft need neither.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Map, Value};

const KUBERNETES: &str = "k8s.io/kubernetes@v1.36.3";
const GATEWAY_API: &str = "sigs.k8s.io/gateway-api@v1.6.3";
const ISTIO: &str = "istio.io/api@v1.31.1";
const API: &str = "k8s.io/api@v0.36.3";
const APIMACHINERY: &str = "k8s.io/apimachinery@v0.36.3";
const HERE: &str = "crates/weft-kinds/schemas";

/// The OpenAPI documents read, and the types served from each; what they refer to comes along.
const OPENAPI: &[(&str, &[&str])] = &[
    (
        "api__v1_openapi.json",
        &[
            "io.k8s.api.core.v1.Namespace",
            "io.k8s.api.core.v1.Service",
            "io.k8s.api.core.v1.Pod",
            "io.k8s.api.core.v1.ConfigMap",
            "io.k8s.api.core.v1.Secret",
            "io.k8s.api.core.v1.ServiceAccount",
            "io.k8s.api.core.v1.Event",
            "io.k8s.api.core.v1.Endpoints",
            "io.k8s.api.core.v1.Node",
            "io.k8s.api.authentication.v1.TokenRequest",
            "io.k8s.api.autoscaling.v1.Scale",
            "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        ],
    ),
    (
        "apis__apps__v1_openapi.json",
        &[
            "io.k8s.api.apps.v1.Deployment",
            "io.k8s.api.apps.v1.ReplicaSet",
            "io.k8s.api.apps.v1.StatefulSet",
            "io.k8s.api.apps.v1.DaemonSet",
            "io.k8s.api.apps.v1.ControllerRevision",
        ],
    ),
    ("apis__batch__v1_openapi.json", &["io.k8s.api.batch.v1.Job", "io.k8s.api.batch.v1.CronJob"]),
    ("apis__autoscaling__v2_openapi.json", &["io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler"]),
    ("apis__policy__v1_openapi.json", &["io.k8s.api.policy.v1.PodDisruptionBudget"]),
    ("apis__discovery.k8s.io__v1_openapi.json", &["io.k8s.api.discovery.v1.EndpointSlice"]),
    ("apis__coordination.k8s.io__v1_openapi.json", &["io.k8s.api.coordination.v1.Lease"]),
    (
        "apis__authorization.k8s.io__v1_openapi.json",
        &["io.k8s.api.authorization.v1.SelfSubjectAccessReview"],
    ),
];

/// Protobuf bodies are read of the types in these files.
const PROTOS: &[&str] = &[
    "k8s.io/api/core/v1/generated.proto",
    "k8s.io/api/apps/v1/generated.proto",
    "k8s.io/api/authentication/v1/generated.proto",
    "k8s.io/api/authorization/v1/generated.proto",
    "k8s.io/api/autoscaling/v2/generated.proto",
    "k8s.io/api/batch/v1/generated.proto",
    "k8s.io/api/coordination/v1/generated.proto",
    "k8s.io/api/discovery/v1/generated.proto",
    "k8s.io/api/policy/v1/generated.proto",
];

/// Groups of the Istio file that weft serves, and the kinds of them that it does not.
const ISTIO_GROUPS: &[&str] = &["networking.istio.io", "security.istio.io", "telemetry.istio.io"];
const ISTIO_NOT: &[&str] = &["EnvoyFilter", "ProxyConfig"];

/// Schemas by name, each as its JSON text or `=other name` when equal to another version's.
type Bundle = BTreeMap<String, String>;

pub fn run(root: &Path, args: &[String]) -> anyhow::Result<()> {
    let check = args.iter().any(|a| a == "--check");
    let bundles = [
        ("kubernetes", KUBERNETES, kubernetes(&module(KUBERNETES)?)?),
        ("gateway-api", GATEWAY_API, gateway_api(&module(GATEWAY_API)?)?),
        ("istio", ISTIO, istio(&module(ISTIO)?)?),
    ];
    let dir = root.join(HERE);
    fs::create_dir_all(&dir)?;
    let mut manifest = String::from(
        "# Where the schemas of this folder come from; written by `cargo xtask schemas`.\n",
    );
    for (name, source, bundle) in &bundles {
        let text: String = bundle.iter().map(|(k, v)| format!("{k}\t{v}\n")).collect();
        let file = format!("{name}.gz");
        manifest.push_str(&format!("{file} {source} {} schemas\n", bundle.len()));
        settle(&dir.join(&file), text.as_bytes(), check, true)?;
    }
    let descriptors = descriptors()?;
    settle(&dir.join("kubernetes.proto.gz"), &descriptors, check, true)?;
    manifest.push_str(&format!("kubernetes.proto.gz {API} {APIMACHINERY} protobuf descriptors\n"));
    settle(&dir.join("MANIFEST"), manifest.as_bytes(), check, false)
}

/// Writes a file, or compares it with what would be written.
fn settle(path: &Path, content: &[u8], check: bool, gzip: bool) -> anyhow::Result<()> {
    if check {
        let found = fs::read(path).with_context(|| format!("{} is missing", path.display()))?;
        let found = if gzip {
            let mut out = Vec::new();
            GzDecoder::new(found.as_slice()).read_to_end(&mut out)?;
            out
        } else {
            found
        };
        ensure!(found == content, "{} is stale; run `cargo xtask schemas`", path.display());
        return Ok(());
    }
    let bytes = if gzip {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content)?;
        encoder.finish()?
    } else {
        content.to_vec()
    };
    println!("{:9} bytes ({:9} plain)  {}", bytes.len(), content.len(), path.display());
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// The folder of a Go module, downloaded when it is not there yet.
pub fn module(version: &str) -> anyhow::Result<PathBuf> {
    let out = Command::new("go")
        .args(["mod", "download", "-json", version])
        .current_dir(std::env::temp_dir())
        .output()
        .context("cannot run `go`; install Go to bring schemas up to date")?;
    let answer: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("`go mod download {version}` gave no JSON"))?;
    match answer.get("Dir").and_then(Value::as_str) {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => bail!("cannot download {version}: {}", answer["Error"]),
    }
}

/// The descriptor set of the protobuf types, without comments.
fn descriptors() -> anyhow::Result<Vec<u8>> {
    let includes = std::env::temp_dir().join(format!("weft-protos-{}", std::process::id()));
    let k8s = includes.join("k8s.io");
    fs::create_dir_all(&k8s)?;
    for (name, version) in [("api", API), ("apimachinery", APIMACHINERY)] {
        std::os::unix::fs::symlink(module(version)?, k8s.join(name))?;
    }
    let mut compiler = protox::Compiler::new([&includes])?;
    compiler.include_imports(true).include_source_info(false).open_files(PROTOS)?;
    let bytes = compiler.encode_file_descriptor_set();
    fs::remove_dir_all(&includes)?;
    Ok(bytes)
}

fn kubernetes(dir: &Path) -> anyhow::Result<Bundle> {
    let mut bundle = Bundle::new();
    for (file, roots) in OPENAPI {
        let path = dir.join("api/openapi-spec/v3").join(file);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut doc: Value = serde_json::from_slice(&text)?;
        let schemas = doc["components"]["schemas"].take();
        let mut open: Vec<String> = roots.iter().map(ToString::to_string).collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let mut schema = schemas.get(&name).with_context(|| format!("no {name}"))?.clone();
            if name.contains(".meta.v1.") {
                // Lists every group there is; only the kind's own entry is of use.
                schema.as_object_mut().map(|s| s.remove("x-kubernetes-group-version-kind"));
            }
            refs(&schema, &mut open);
            let text = schema.to_string();
            if let Some(other) = bundle.insert(name.clone(), text.clone()) {
                ensure!(other == text, "{name} differs between OpenAPI documents");
            }
        }
    }
    Ok(bundle)
}

fn refs(schema: &Value, out: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(to)) = map.get("$ref") {
                out.extend(to.rsplit('/').next().map(str::to_owned));
            }
            map.values().for_each(|v| refs(v, out));
        }
        Value::Array(list) => list.iter().for_each(|v| refs(v, out)),
        _ => {}
    }
}

fn gateway_api(dir: &Path) -> anyhow::Result<Bundle> {
    let mut bundle = Bundle::new();
    let mut files: Vec<PathBuf> = fs::read_dir(dir.join("config/crd/standard"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file)?;
        if !text.contains("kind: CustomResourceDefinition") {
            continue;
        }
        let mut crd: Value =
            yaml(&text).with_context(|| format!("cannot read {}", file.display()))?;
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
        for (_, place, name) in GRAFTS.iter().filter(|(k, ..)| *k == kind) {
            let name = (file.file_name().unwrap_or_default(), *place, *name);
            graft(dir, name, &mut crd)?;
        }
        add_crd(&mut bundle, &crd)?;
    }
    Ok(bundle)
}

/// Fields of the experimental channel that weft serves: of which kind, where, and their names.
const GRAFTS: &[(&str, &str, &str)] =
    &[("HTTPRoute", RULES, "retry"), ("HTTPRoute", RULES, SESSION), ("GRPCRoute", RULES, SESSION)];
const RULES: &str = "/properties/spec/properties/rules/items/properties";
const SESSION: &str = "sessionPersistence";

/// Adds one of [`GRAFTS`] to a standard kind.
fn graft(
    dir: &Path,
    (file, place, name): (&std::ffi::OsStr, &str, &str),
    crd: &mut Value,
) -> anyhow::Result<()> {
    let path = dir.join("config/crd/experimental").join(file);
    let theirs = yaml(&fs::read_to_string(&path)?)?;
    let versions = theirs["spec"]["versions"].as_array().context("no versions")?;
    for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let same = versions.iter().find(|v| v["name"] == version["name"]);
        let same = same.context("a version is not in the experimental channel")?;
        let place = format!("/schema/openAPIV3Schema{place}");
        let field = same.pointer(&format!("{place}/{name}"));
        let field = field.with_context(|| format!("no {name} in the experimental channel"))?;
        let here = version.pointer_mut(&place).context("the standard channel has changed")?;
        here[name] = field.clone();
    }
    Ok(())
}

fn istio(dir: &Path) -> anyhow::Result<Bundle> {
    let mut bundle = Bundle::new();
    let text = fs::read_to_string(dir.join("kubernetes/customresourcedefinitions.gen.yaml"))?;
    for document in text.split("\n---\n").filter(|d| d.contains("kind:")) {
        let crd: Value = yaml(document)?;
        let group = crd["spec"]["group"].as_str().unwrap_or_default();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default();
        if ISTIO_GROUPS.contains(&group) && !ISTIO_NOT.contains(&kind) {
            add_crd(&mut bundle, &crd)?;
        }
    }
    Ok(bundle)
}

fn yaml(text: &str) -> anyhow::Result<Value> {
    // The CRDs are far larger than what a user may send; they come from a pinned version.
    let mut options = serde_saphyr::Options::default();
    options.budget = None;
    Ok(serde_saphyr::from_str_with_options(text, options)?)
}

/// Adds each served version as `group/version/kind`.
fn add_crd(bundle: &mut Bundle, crd: &Value) -> anyhow::Result<()> {
    if crd["kind"] != "CustomResourceDefinition" {
        return Ok(());
    }
    let (group, kind) = (&crd["spec"]["group"], &crd["spec"]["names"]["kind"]);
    let (Some(group), Some(kind)) = (group.as_str(), kind.as_str()) else {
        bail!("a CRD without group or kind");
    };
    let mut first: Option<(String, String)> = None;
    for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
        if version["served"] != true {
            continue;
        }
        let name = format!("{group}/{}/{kind}", version["name"].as_str().unwrap_or_default());
        let text = ordered(&version["schema"]["openAPIV3Schema"]).to_string();
        match &first {
            Some((same, theirs)) if *theirs == text => {
                bundle.insert(name, format!("={same}"));
            }
            _ => {
                bundle.insert(name.clone(), text.clone());
                first.get_or_insert((name, text));
            }
        }
    }
    Ok(())
}

/// The same schema with sorted keys, so that equal versions compare equal.
fn ordered(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().map(|(k, v)| (k.clone(), ordered(v))).collect();
            Value::Object(sorted.into_iter().collect::<Map<_, _>>())
        }
        Value::Array(list) => Value::Array(list.iter().map(ordered).collect()),
        other => other.clone(),
    }
}
