// SPDX-License-Identifier: Apache-2.0
//! What Kubernetes' object metadata means, as functions over raw JSON: making an object, changing
//! it, deleting it. Pure: who calls brings the time, the uid and the chance. Never judges a spec;
//! that is the schema engine's duty at the door.

use serde_json::{Map, Value, json};
use weft_base::issue::{FieldPath, Issues};
use weft_base::name::{Label, ObjectName};
use weft_base::rng::Rng;
use weft_kinds::kind::{KindId, Subresource};

use super::{DeleteOptions, ObjectError, Part, Preconditions, Propagation};

/// Kubernetes' alphabet for random names: no vowels, so no words.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Grace of a pod that names none, seconds.
const POD_GRACE_S: i64 = 30;

/// What a new object is given.
#[derive(Clone, Debug)]
pub struct Birth {
    pub uid: String,
    /// RFC 3339, seconds.
    pub now: String,
    /// Appended to `generateName`.
    pub suffix: String,
}

/// What deleting an object comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Deletion {
    /// It goes now.
    Remove,
    /// It stays, marked, until its finalizers or its process are done.
    Mark(Value),
    /// It is marked already and nothing changes.
    Pending,
}

// === impl Birth ===

impl Birth {
    /// A new identity at a moment.
    pub fn new(wall_ms: u64, rng: &mut Rng) -> Self {
        Self { uid: uid(wall_ms, rng), now: timestamp(wall_ms), suffix: suffix(rng, 5) }
    }
}

/// A UUIDv7 from the given time and chance.
pub fn uid(wall_ms: u64, rng: &mut Rng) -> String {
    let mut random = [0u8; 10];
    for chunk in random.chunks_mut(8) {
        let bytes = rng.next_u64().to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    uuid::Builder::from_unix_timestamp_millis(wall_ms, &random).into_uuid().to_string()
}

/// Kubernetes' form of a moment: RFC 3339, whole seconds, UTC.
pub fn timestamp(wall_ms: u64) -> String {
    let seconds = i64::try_from(wall_ms / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// `len` random characters as Kubernetes puts behind generated names.
pub fn suffix(rng: &mut Rng, len: usize) -> String {
    let mut pick = || usize::try_from(rng.below(27)).unwrap_or(0);
    (0..len).filter_map(|_| SAFE.get(pick())).map(|b| char::from(*b)).collect()
}

/// Kubernetes' `SafeEncodeString` of a 32-bit hash: how template hashes look.
pub fn safe_hash(hash: u64) -> String {
    let folded = (hash ^ (hash >> 32)) & 0xffff_ffff;
    let safe = |b: u8| SAFE.get(usize::from(b) % SAFE.len()).copied().unwrap_or(b'b');
    folded.to_string().bytes().map(|b| char::from(safe(b))).collect()
}

/// The object with its `resourceVersion`, as doors show it.
pub fn present(raw: &Value, revision: u64) -> Value {
    let mut out = raw.clone();
    metadata_mut(&mut out).insert("resourceVersion".into(), json!(revision.to_string()));
    out
}

/// `metadata`, made when it is missing.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let meta = &mut object["metadata"];
    if !meta.is_object() {
        *meta = json!({});
    }
    static_map(meta)
}

fn static_map(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("made an object by the caller")
}

/// One text of `metadata`, empty when absent.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or("")
}

/// The texts of a list in `metadata`.
pub fn texts<'a>(object: &'a Value, field: &str) -> Vec<&'a str> {
    let list = object["metadata"][field].as_array();
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

pub fn is_deleting(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

/// A new object in its stored form. `status` is the system's to write, so a user's is dropped.
pub fn create(
    kind: KindId,
    namespace: &str,
    mut raw: Value,
    birth: &Birth,
    system: bool,
) -> Result<Value, ObjectError> {
    let row = kind.row();
    check_form(kind, &raw)?;
    if !text(&raw, "resourceVersion").is_empty() {
        let why = "resourceVersion should not be set on objects to be created";
        return Err(ObjectError::BadRequest(why.into()));
    }
    let meta = metadata_mut(&mut raw);
    let name = meta.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
    let prefix = meta.get("generateName").and_then(Value::as_str).unwrap_or("").to_owned();
    let name = match (name.is_empty(), prefix.is_empty()) {
        (false, _) => name,
        (true, false) => {
            let keep: String = prefix.chars().take(58).collect();
            format!("{keep}{}", birth.suffix)
        }
        (true, true) => {
            let mut issues = Issues::default();
            issues.error(FieldPath::new("metadata.name"), "name or generateName is required");
            return Err(ObjectError::Invalid { kind, name, issues });
        }
    };
    check_name(kind, &name)?;
    meta.insert("name".into(), json!(name));
    for field in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        meta.remove(field);
    }
    match row.namespaced {
        true => meta.insert("namespace".into(), json!(namespace)),
        false => meta.remove("namespace"),
    };
    meta.insert("uid".into(), json!(birth.uid));
    meta.insert("creationTimestamp".into(), json!(birth.now));
    let spoken = raw.get("spec").is_some() && has_generation(kind);
    if spoken {
        metadata_mut(&mut raw).insert("generation".into(), json!(1));
    }
    stored_form(kind, &mut raw);
    if row.has(Subresource::Status) && !system {
        match kind {
            KindId::Service => raw["status"] = json!({ "loadBalancer": {} }),
            KindId::Pod => raw["status"] = json!({ "phase": "Pending" }),
            KindId::Namespace => raw["status"] = json!({ "phase": "Active" }),
            _ => match first_status(kind) {
                Some(status) => raw["status"] = status,
                None => remove(&mut raw, "status"),
            },
        }
    }
    Ok(raw)
}

/// What strict clients expect of a status that nobody has written yet.
fn first_status(kind: KindId) -> Option<Value> {
    Some(match kind {
        KindId::Deployment | KindId::Job | KindId::CronJob => json!({}),
        KindId::ReplicaSet => json!({ "replicas": 0 }),
        KindId::StatefulSet => json!({ "replicas": 0, "availableReplicas": 0 }),
        KindId::DaemonSet => json!({ "currentNumberScheduled": 0, "numberMisscheduled": 0,
            "desiredNumberScheduled": 0, "numberReady": 0 }),
        KindId::HorizontalPodAutoscaler => json!({ "desiredReplicas": 0, "currentMetrics": null }),
        KindId::PodDisruptionBudget => json!({ "disruptionsAllowed": 0, "currentHealthy": 0,
            "desiredHealthy": 0, "expectedPods": 0 }),
        _ => return None,
    })
}

/// `new` in place of `old`: what callers may not change is carried over, what they change moves
/// the generation. Equal to `old` when nothing changes.
pub fn update(kind: KindId, old: &Value, mut new: Value, part: Part) -> Result<Value, ObjectError> {
    check_form(kind, &new)?;
    let name = text(old, "name").to_owned();
    let uid = text(&new, "uid");
    if !uid.is_empty() && uid != text(old, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            text(old, "uid")
        );
        return Err(ObjectError::Conflict { kind, name, why });
    }
    if part == Part::Status {
        let mut out = old.clone();
        match new.get_mut("status") {
            Some(status) => out["status"] = status.take(),
            None => remove(&mut out, "status"),
        }
        if let Some(managed) = new.pointer_mut("/metadata/managedFields") {
            metadata_mut(&mut out).insert("managedFields".into(), managed.take());
        }
        return Ok(out);
    }
    carry(old, &mut new);
    stored_form(kind, &mut new);
    if kind.row().has(Subresource::Status) && part == Part::Spec {
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => remove(&mut new, "status"),
        }
    }
    if is_deleting(old) {
        let had = texts(old, "finalizers");
        if let Some(added) = texts(&new, "finalizers").into_iter().find(|f| !had.contains(f)) {
            let why = format!(
                "metadata.finalizers: no new finalizers can be added if the object is \
                 being deleted, found new finalizer {added:?}"
            );
            return Err(ObjectError::Forbidden { kind, name, why });
        }
    }
    if has_generation(kind) && changed_spec(old, &new) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        metadata_mut(&mut new).insert("generation".into(), json!(generation));
    }
    Ok(new)
}

/// Metadata that only the server writes.
fn carry(old: &Value, new: &mut Value) {
    let kept = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ];
    let meta = metadata_mut(new);
    for field in kept {
        match old["metadata"].get(field) {
            Some(value) => meta.insert(field.into(), value.clone()),
            None => meta.remove(field),
        };
    }
    meta.remove("resourceVersion");
    meta.remove("selfLink");
}

/// Whether a deletion is asked for by someone who knows the object.
pub fn check_preconditions(
    kind: KindId,
    old: &Value,
    revision: u64,
    wanted: &Preconditions,
) -> Result<(), ObjectError> {
    let (name, uid) = (text(old, "name").to_owned(), text(old, "uid"));
    let why = match wanted {
        Preconditions { uid: Some(want), .. } if want != uid => {
            format!("Precondition failed: UID in precondition: {want}, UID in object meta: {uid}")
        }
        Preconditions { revision: Some(want), .. } if *want != revision => format!(
            "Precondition failed: ResourceVersion in precondition: {want}, ResourceVersion in \
             object meta: {revision}"
        ),
        _ => return Ok(()),
    };
    Err(ObjectError::Conflict { kind, name, why })
}

/// What deleting means for an object as it is now.
pub fn delete(kind: KindId, old: &Value, options: &DeleteOptions, now: &str) -> Deletion {
    let mut new = old.clone();
    let mut finalizers: Vec<String> =
        texts(old, "finalizers").into_iter().map(str::to_owned).collect();
    finalizers.retain(|f| f != ORPHAN && f != FOREGROUND || is_deleting(old));
    let wanted = match options.propagation {
        Some(Propagation::Orphan) => Some(ORPHAN),
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Background) | None => None,
    };
    if let Some(wanted) = wanted
        && !finalizers.iter().any(|f| f == wanted)
    {
        finalizers.push(wanted.to_owned());
    }
    let grace = grace(kind, old, options);
    let content = kind == KindId::Namespace && !options.finished;
    if finalizers.is_empty() && grace == 0 && !content {
        return Deletion::Remove;
    }
    let meta = metadata_mut(&mut new);
    match finalizers.is_empty() {
        true => meta.remove("finalizers"),
        false => meta.insert("finalizers".into(), json!(finalizers)),
    };
    let known = meta.get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    if !is_deleting(old) {
        meta.insert("deletionTimestamp".into(), json!(now));
        meta.insert("deletionGracePeriodSeconds".into(), json!(grace));
        if has_generation(kind) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            meta.insert("generation".into(), json!(generation));
        }
    } else if known.is_some_and(|k| grace < k) {
        meta.insert("deletionGracePeriodSeconds".into(), json!(grace));
    }
    if kind == KindId::Namespace {
        if !new["status"].is_object() {
            new["status"] = json!({});
        }
        new["status"]["phase"] = json!("Terminating");
    }
    match new == *old {
        true => Deletion::Pending,
        false => Deletion::Mark(new),
    }
}

/// A running pod is given time; the agent ends it and removes the object with grace 0.
fn grace(kind: KindId, old: &Value, options: &DeleteOptions) -> i64 {
    let finished = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let placed = old["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty());
    if kind != KindId::Pod || !placed || finished {
        return 0;
    }
    let own = old["spec"]["terminationGracePeriodSeconds"].as_i64();
    options.grace_s.or(own).unwrap_or(POD_GRACE_S).max(0)
}

/// Whether an object that was changed while it is being deleted may go now.
pub fn may_go(kind: KindId, object: &Value) -> bool {
    let grace = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    is_deleting(object)
        && texts(object, "finalizers").is_empty()
        && (kind != KindId::Pod || grace == 0)
        && kind != KindId::Namespace
}

/// The object without one finalizer.
pub fn without_finalizer(object: &Value, finalizer: &str) -> Value {
    let mut out = object.clone();
    let left: Vec<&str> =
        texts(object, "finalizers").into_iter().filter(|f| *f != finalizer).collect();
    match left.is_empty() {
        true => metadata_mut(&mut out).remove("finalizers"),
        false => metadata_mut(&mut out).insert("finalizers".into(), json!(left)),
    };
    out
}

/// Which garbage collection an object that is being deleted waits for.
pub fn collection(object: &Value) -> Option<Propagation> {
    if !is_deleting(object) {
        return None;
    }
    let finalizers = texts(object, "finalizers");
    match (finalizers.contains(&ORPHAN), finalizers.contains(&FOREGROUND)) {
        (true, _) => Some(Propagation::Orphan),
        (false, true) => Some(Propagation::Foreground),
        (false, false) => None,
    }
}

/// The finalizer of a collection that is done.
pub fn collection_finalizer(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::Orphan => ORPHAN,
        Propagation::Foreground | Propagation::Background => FOREGROUND,
    }
}

/// What every kind has in common; the schema engine judges the rest.
pub fn check_form(kind: KindId, raw: &Value) -> Result<(), ObjectError> {
    let mut issues = Issues::default();
    let odd = |value: &Value| !value.is_object() && !value.is_null();
    if !raw.is_object() {
        issues.error(FieldPath::root(), "invalid value: an object is expected");
    }
    for field in ["metadata", "spec", "status"] {
        if raw.get(field).is_some_and(odd) {
            issues.error(FieldPath::new(field), "invalid value: an object is expected");
        }
    }
    for field in ["labels", "annotations"] {
        let map = &raw["metadata"][field];
        let words = |m: &Map<String, Value>| m.values().all(|v| v.is_string() || v.is_null());
        if odd(map) || !map.as_object().is_none_or(words) {
            let path = FieldPath::new("metadata").field(field);
            issues.error(path, "invalid value: a map of strings is expected");
        }
    }
    match issues.is_empty() {
        true => Ok(()),
        false => Err(ObjectError::Invalid { kind, name: text(raw, "name").to_owned(), issues }),
    }
}

fn stored_form(kind: KindId, raw: &mut Value) {
    raw["apiVersion"] = json!(kind.row().api_version());
    raw["kind"] = json!(kind.row().kind);
    // Kubernetes leaves empty ones out; `kubectl diff` sees those that are kept.
    let meta = metadata_mut(raw);
    for field in ["labels", "annotations"] {
        if meta.get(field).and_then(Value::as_object).is_some_and(Map::is_empty) {
            meta.remove(field);
        }
    }
    for field in ["finalizers", "ownerReferences"] {
        if meta.get(field).and_then(Value::as_array).is_some_and(Vec::is_empty) {
            meta.remove(field);
        }
    }
}

/// Kinds whose API server counts changes of the spec.
fn has_generation(kind: KindId) -> bool {
    !matches!(
        kind,
        KindId::Namespace
            | KindId::Service
            | KindId::Node
            | KindId::ConfigMap
            | KindId::Secret
            | KindId::Event
            | KindId::Lease
            | KindId::Pod
            | KindId::EndpointSlice
            | KindId::ServiceAccount
    )
}

fn changed_spec(old: &Value, new: &Value) -> bool {
    let spoken = |v: &'_ Value| -> Vec<(String, Value)> {
        let fields = v.as_object().into_iter().flatten();
        let fields = fields.filter(|(k, _)| *k != "metadata" && *k != "status");
        let mut out: Vec<_> = fields.map(|(k, v)| (k.clone(), v.clone())).collect();
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out
    };
    spoken(old) != spoken(new)
}

fn remove(object: &mut Value, field: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(field);
    }
}

fn check_name(kind: KindId, name: &str) -> Result<(), ObjectError> {
    let result = match kind {
        KindId::Service | KindId::Namespace => Label::new(name).map(drop),
        _ => ObjectName::new(name).map(drop),
    };
    result.map_err(|e| {
        let mut issues = Issues::default();
        issues.error(FieldPath::new("metadata.name"), format!("invalid value: {e}"));
        ObjectError::Invalid { kind, name: name.to_owned(), issues }
    })
}
