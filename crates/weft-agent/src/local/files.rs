// SPDX-License-Identifier: Apache-2.0
//! Definitions of services and checks in files of the machine's operator, in Consul's JSON:
//! `service`, `services`, `check`, `checks`. Only here may a check name a program. Pure but for
//! [`read`].

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::script::Script;

/// Files and definitions of one machine, and one file's size.
const FILES_MAX: usize = 1_000;
const DEFINITIONS_MAX: usize = 5_000;
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// How often a program is run, and how long it may take, when the file does not say.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// No interval or time-out is longer, and no sum of some overflows.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
const NOT_OPERATORS: &str = "others than its owner may write it, or its owner is neither root nor \
                             the agent's user; what may name programs must be the operator's \
                             alone (chmod go-w)";

/// What the files say.
#[derive(Debug, Default, PartialEq)]
pub struct Defined {
    /// Bodies of `PUT /v1/agent/service/register`, with what they are to be shown with.
    pub services: Vec<(Map<String, Value>, String)>,
    /// Bodies of `PUT /v1/agent/check/register`.
    pub checks: Vec<(Map<String, Value>, String)>,
    pub scripts: Vec<Scripted>,
}

impl Defined {
    /// Namespace and id of each check that comes with a service, as the agent's door names them.
    pub fn service_checks(&self) -> impl Iterator<Item = (String, String)> {
        self.services.iter().flat_map(|(body, _)| {
            let of = namespace(body);
            ids_of_checks(body).into_iter().map(move |id| (of.clone(), id))
        })
    }
}

/// A check that runs a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scripted {
    pub namespace: String,
    pub check: String,
    pub script: Script,
    pub interval: Duration,
}

/// What is wrong with a file.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{file}: {what}")]
pub struct BadFile {
    pub file: String,
    pub what: String,
}

/// Reads every `*.json` of a folder, by name.
///
/// # Errors
/// When the folder or one of the files cannot be read or is wrong: nothing is half believed.
pub fn read(dir: &Path) -> Result<Defined, BadFile> {
    let bad = |file: &Path, what: &dyn std::fmt::Display| BadFile {
        file: file.display().to_string(),
        what: what.to_string(),
    };
    let entries = std::fs::read_dir(dir).map_err(|e| bad(dir, &e))?;
    let meta = std::fs::metadata(dir).map_err(|e| bad(dir, &e))?;
    if !is_operators(&meta) {
        return Err(bad(dir, &NOT_OPERATORS));
    }
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
    files.sort();
    if files.len() > FILES_MAX {
        return Err(bad(dir, &format!("more than {FILES_MAX} files")));
    }
    let mut defined = Defined::default();
    for file in files {
        let text = text_of(&file).map_err(|why| bad(&file, &why))?;
        parse(&text, &mut defined).map_err(|what| bad(&file, &what))?;
    }
    Ok(defined)
}

/// One file's text, if it is the operator's. What is judged is what is read.
fn text_of(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !is_operators(&meta) {
        return Err(NOT_OPERATORS.to_owned());
    }
    if !meta.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    match u64::try_from(text.len()) {
        Ok(0..=FILE_BYTES_MAX) => Ok(text),
        _ => Err(format!("larger than {FILE_BYTES_MAX} bytes")),
    }
}

/// Whether nobody else may write it.
fn is_operators(meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let own = rustix::process::geteuid().as_raw();
    (meta.uid() == 0 || meta.uid() == own) && meta.mode() & 0o022 == 0
}

/// Reads one file's text.
///
/// # Errors
/// A sentence.
pub fn parse(text: &str, into: &mut Defined) -> Result<(), String> {
    let whole: Value = serde_json::from_str(text).map_err(|e| format!("no JSON: {e}"))?;
    let Value::Object(whole) = whole else { return Err("expected a JSON object".to_owned()) };
    for (name, value) in whole {
        let several = match (name.as_str(), value) {
            ("service" | "check", one @ Value::Object(_)) => vec![one],
            ("services" | "checks", Value::Array(several)) => several,
            ("service" | "check", _) => return Err(format!("{name}: expected an object")),
            ("services" | "checks", _) => return Err(format!("{name}: expected a list")),
            _ => {
                return Err(format!(
                    "{name}: not known here; service, services, check and checks are"
                ));
            }
        };
        for (at, one) in several.into_iter().enumerate() {
            let Value::Object(one) = one else {
                return Err(format!("{name}[{at}]: expected an object"));
            };
            let done = match name.starts_with("service") {
                true => service(one, into),
                false => check(one, into),
            };
            done.map_err(|what| format!("{name}[{at}]: {what}"))?;
            if into.services.len() + into.checks.len() > DEFINITIONS_MAX {
                return Err(format!("more than {DEFINITIONS_MAX} services and checks"));
            }
        }
    }
    Ok(())
}

fn service(mut body: Map<String, Value>, into: &mut Defined) -> Result<(), String> {
    let name = text(&body, "name").or_else(|| text(&body, "service")).ok_or("it has no name")?;
    let id = text(&body, "id").unwrap_or_else(|| name.clone());
    let token = taken(&mut body, "token").and_then(|t| t.as_str().map(str::to_owned));
    let mut checks: Vec<Value> = taken(&mut body, "check").into_iter().collect();
    match taken(&mut body, "checks") {
        None => {}
        Some(Value::Array(more)) => checks.extend(more),
        Some(_) => return Err("checks: expected a list".to_owned()),
    }
    let (namespace, many) = (namespace(&body), checks.len());
    for (at, one) in checks.iter_mut().enumerate() {
        let Value::Object(one) = one else { return Err("a check is no object".to_owned()) };
        scripted(one, (&namespace, &usual_id(&id, at, many)), into)?;
    }
    if !checks.is_empty() {
        body.insert("checks".into(), Value::Array(checks));
    }
    into.services.push((body, token.unwrap_or_default()));
    Ok(())
}

/// The ids of a service's checks, each as it says or as the door would call it.
fn ids_of_checks(body: &Map<String, Value>) -> Vec<String> {
    let names = ["id", "name", "service"];
    let service = names.iter().find_map(|name| text(body, name)).unwrap_or_default();
    let checks = body.get("checks").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let id = |(at, check): (usize, &Value)| {
        let own = check.as_object().and_then(|c| text(c, "checkid").or_else(|| text(c, "id")));
        own.unwrap_or_else(|| usual_id(&service, at, checks.len()))
    };
    checks.iter().enumerate().map(id).collect()
}

/// What a service's check is called that has no id of its own.
fn usual_id(service: &str, at: usize, many: usize) -> String {
    match many {
        0 | 1 => format!("service:{service}"),
        _ => format!("service:{service}:{}", at + 1),
    }
}

fn check(mut body: Map<String, Value>, into: &mut Defined) -> Result<(), String> {
    let name = text(&body, "name").ok_or("it has no name")?;
    let token = taken(&mut body, "token").and_then(|t| t.as_str().map(str::to_owned));
    let namespace = namespace(&body);
    scripted(&mut body, (&namespace, &name), into)?;
    into.checks.push((body, token.unwrap_or_default()));
    Ok(())
}

/// Takes what names a program out of a check. What is left is told how it is, and critical when
/// it is not told for longer than a run takes.
fn scripted(
    body: &mut Map<String, Value>,
    (namespace, default_id): (&str, &str),
    into: &mut Defined,
) -> Result<(), String> {
    let script = taken(body, "script");
    let args = match (taken(body, "args").or_else(|| taken(body, "scriptargs")), script) {
        (None, None) => return Ok(()),
        (Some(Value::Array(args)), _) => {
            let word = |v: &Value| v.as_str().map(str::to_owned);
            let args: Option<Vec<String>> = args.iter().map(word).collect();
            args.filter(|args| !args.is_empty()).ok_or("args: expected a list of words")?
        }
        (None, Some(Value::String(line))) => vec!["/bin/sh".into(), "-c".into(), line],
        _ => return Err("args: expected a list of words".to_owned()),
    };
    let time = |value: Option<Value>, default| match value {
        None => Ok(default),
        Some(value) => duration(&value).ok_or_else(|| format!("{value} is no duration")),
    };
    let interval = time(taken(body, "interval"), INTERVAL)?.max(INTERVAL_MIN);
    let timeout = time(taken(body, "timeout"), TIMEOUT)?;
    let id = text(body, "checkid").or_else(|| text(body, "id"));
    let check = id.unwrap_or_else(|| default_id.to_owned());
    body.retain(|name, _| !same(name, "id"));
    body.insert("CheckID".into(), check.clone().into());
    let ttl = (interval + timeout) * 2;
    body.insert("TTL".into(), json!(format!("{}ms", ttl.as_millis())));
    let (namespace, script) = (namespace.to_owned(), Script { args, timeout });
    into.scripts.push(Scripted { namespace, check, script, interval });
    Ok(())
}

/// Where the agent's door registers what a definition defines.
pub fn namespace(body: &Map<String, Value>) -> String {
    text(body, "namespace").unwrap_or_else(|| "default".to_owned())
}

// === Consul's way with names ===

/// Whatever its case and underscores.
fn same(name: &str, wanted: &str) -> bool {
    let plain = name.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase());
    plain.eq(wanted.chars())
}

fn taken(body: &mut Map<String, Value>, wanted: &str) -> Option<Value> {
    let name = body.keys().find(|name| same(name, wanted))?.clone();
    body.remove(&name).filter(|value| !value.is_null())
}

fn text(body: &Map<String, Value>, wanted: &str) -> Option<String> {
    let (_, value) = body.iter().find(|(name, _)| same(name, wanted))?;
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// As Consul reads it in a file: `1m30s`, `1.5s`, `500ms`; a number is nanoseconds.
fn duration(value: &Value) -> Option<Duration> {
    let mut rest = match value {
        Value::Number(number) => return number.as_u64().map(Duration::from_nanos),
        other => other.as_str().filter(|text| !text.is_empty())?,
    };
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(unit);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 6e10,
            "h" => 3.6e12,
            _ => return None,
        };
        nanos += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    Duration::try_from_secs_f64(nanos / 1e9).ok().filter(|span| *span <= DURATION_MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn parsed(text: &str) -> Result<Defined, String> {
        let mut defined = Defined::default();
        parse(text, &mut defined).map(|()| defined)
    }

    #[test]
    fn a_script_becomes_a_check_that_is_told_how_it_is() {
        let defined = parsed(
            r#"{"service": {"name": "web", "port": 80, "token": "t", "checks": [
                {"args": ["/bin/true", "-v"], "interval": "5s", "timeout": "2s"},
                {"http": "http://localhost/", "interval": "1s"}]},
               "check": {"id": "disk", "name": "Disk", "script": "df / | grep -q x",
                         "Interval": "1m"}}"#,
        )
        .unwrap();
        let (web, token) = &defined.services[0];
        assert_eq!(token, "t");
        let wanted = json!({"name": "web", "port": 80, "checks": [
            {"CheckID": "service:web:1", "TTL": "14000ms"},
            {"http": "http://localhost/", "interval": "1s"}]});
        assert_eq!(Value::Object(web.clone()), wanted);
        let (disk, _) = &defined.checks[0];
        assert_eq!(
            Value::Object(disk.clone()),
            json!({"CheckID": "disk", "name": "Disk", "TTL": "180000ms"})
        );
        assert!(defined.scripts.iter().all(|s| s.namespace == "default"));
        let other = r#"{"service": {"name": "a", "Namespace": "team", "check": {"script": "x"}}}"#;
        assert_eq!(parsed(other).unwrap().scripts[0].namespace, "team");
        let of = |s: &Scripted| (s.check.clone(), s.script.args.join(" "), s.interval.as_secs());
        let mut scripts: Vec<_> = defined.scripts.iter().map(of).collect();
        scripts.sort();
        assert_eq!(
            scripts,
            [
                ("disk".into(), "/bin/sh -c df / | grep -q x".into(), 60),
                ("service:web:1".into(), "/bin/true -v".into(), 5)
            ]
        );
    }

    #[test]
    fn durations_are_read_as_in_consuls_files() {
        for (text, ms) in [
            (json!("10s"), 10_000),
            (json!("1m30s"), 90_000),
            (json!("1.5s"), 1_500),
            (json!("2h"), 7_200_000),
            (json!("250ms"), 250),
            (json!(2_000_000_000_u64), 2_000),
        ] {
            assert_eq!(duration(&text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in [json!("10"), json!("s"), json!(""), json!("1.2.3s"), json!("-1s"), json!(-1)] {
            assert_eq!(duration(&bad), None, "{bad}");
        }
        assert_eq!(duration(&json!("99999999999h")), None, "longer than anybody means");
    }

    #[test]
    fn the_checks_of_services_are_known_by_their_ids() {
        let of = |text: &str| parsed(text).unwrap().service_checks().collect::<Vec<_>>();
        let ids = |ids: &[&str]| -> Vec<(String, String)> {
            ids.iter().map(|id| ("default".to_owned(), (*id).to_owned())).collect()
        };
        let one = r#"{"service": {"name": "web", "check": {"script": "true"}}}"#;
        assert_eq!(of(one), ids(&["service:web"]));
        let two = r#"{"service": {"name": "web", "id": "w1", "checks": [
            {"args": ["true"]}, {"id": "up", "http": "http://localhost/"}, {"ttl": "1m"}]}}"#;
        assert_eq!(of(two), ids(&["service:w1:1", "up", "service:w1:3"]));
        assert_eq!(of(r#"{"service": {"name": "web"}}"#), []);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("[]", "object"),
            ("{", "no JSON"),
            (r#"{"servcie": {}}"#, "servcie"),
            (r#"{"service": {}}"#, "service[0]: it has no name"),
            (r#"{"services": {}}"#, "list"),
            (r#"{"check": {"name": "x", "args": "ls"}}"#, "list of words"),
            (r#"{"check": {"name": "x", "args": []}}"#, "list of words"),
            (r#"{"check": {"name": "x", "args": ["a"], "interval": "x"}}"#, "no duration"),
        ] {
            let why = parsed(text).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        std::fs::write(&file, r#"{"service": {"name": "web"}}"#).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no JSON").unwrap();
        let may = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            read(dir.path())
        };
        assert_eq!(may(0o644).unwrap().services.len(), 1);
        for others in [0o666, 0o664, 0o646] {
            assert!(may(others).unwrap_err().what.contains("operator"), "{others:o}");
        }
        assert_eq!(may(0o600).unwrap().services.len(), 1);
        let folder = |mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(dir.path(), permissions).unwrap();
        };
        folder(0o775);
        assert!(read(dir.path()).unwrap_err().what.contains("operator"));
        folder(0o755);
        assert!(read(&dir.path().join("none")).is_err());
    }
}
