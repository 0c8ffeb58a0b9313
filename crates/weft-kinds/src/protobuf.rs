// SPDX-License-Identifier: Apache-2.0
//! Kubernetes' protobuf bodies (`k8s\0` and a `runtime.Unknown`) into the JSON that the schema
//! engine reads. By reflection over a committed descriptor set; nothing is kept between bodies.
//!
//! Go writes zero values that JSON leaves out and embeds structs that JSON inlines; both are
//! undone here. Called by the Kubernetes-style door.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, ReflectMessage, Value,
};
use serde_json::{Map, Value as Json, json};
use thiserror::Error;
use weft_base::limits::DOCUMENT_DEPTH_MAX;

use crate::guards;
use crate::kind::split_api_version;
use crate::patch::depth;

/// What such a body begins with.
pub const MAGIC: &[u8] = b"k8s\0";

const DESCRIPTORS: &[u8] = include_bytes!("../schemas/kubernetes.proto.gz");
const DESCRIPTORS_BYTES_MAX: u64 = 16 << 20;
const DEPTH_MAX: usize = 32;

#[derive(Debug, Error)]
pub enum ProtobufError {
    #[error("the body does not begin as Kubernetes protobuf does")]
    NoMagic,
    #[error("the body is not valid protobuf: {0}")]
    Malformed(String),
    #[error("{kind} of {api_version:?} is not read from protobuf; send JSON")]
    Unknown { api_version: String, kind: String },
}

/// Structs that Go embeds and JSON therefore inlines.
const INLINED: &[&str] = &[
    "volumeSource",
    "handler",
    "localObjectReference",
    "persistentVolumeSource",
    "ephemeralContainerCommon",
];

/// Optional numbers and booleans whose zero means something. Others are left out when zero, as
/// `omitempty` does.
const ZERO_SPEAKS: &[&str] = &[
    "replicas",
    "revisionHistoryLimit",
    "progressDeadlineSeconds",
    "terminationGracePeriodSeconds",
    "gracePeriodSeconds",
    "activeDeadlineSeconds",
    "parallelism",
    "completions",
    "backoffLimit",
    "ttlSecondsAfterFinished",
    "successfulJobsHistoryLimit",
    "failedJobsHistoryLimit",
    "startingDeadlineSeconds",
    "minReplicas",
    "stabilizationWindowSeconds",
    "partition",
    "runAsUser",
    "runAsGroup",
    "fsGroup",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "allowPrivilegeEscalation",
    "readOnlyRootFilesystem",
    "runAsNonRoot",
    "privileged",
    "allocateLoadBalancerNodePorts",
    "publishNotReadyAddresses",
    "immutable",
    "ready",
    "serving",
    "terminating",
    "port",
];

/// The object of a body.
///
/// # Errors
/// When it is not Kubernetes protobuf, or of a type that is not in the descriptor set.
pub fn decode(body: &[u8]) -> Result<Json, ProtobufError> {
    let rest = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let pool = pool()?;
    let unknown = message(&pool, "k8s.io.apimachinery.pkg.runtime.Unknown", rest)?;
    let unknown = object(&unknown, 0)?;
    let word = |name: &str| unknown["typeMeta"][name].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (word("apiVersion"), word("kind"));
    let raw = unknown["raw"].as_str().unwrap_or_default();
    let raw = STANDARD.decode(raw).map_err(|e| ProtobufError::Malformed(e.to_string()))?;
    let (group, version) = split_api_version(&api_version);
    let package = if group.is_empty() { "core" } else { group.trim_end_matches(".k8s.io") };
    let candidates = [
        format!("k8s.io.api.{package}.{version}.{kind}"),
        format!("k8s.io.apimachinery.pkg.apis.meta.v1.{kind}"),
    ];
    let known = candidates.iter().find(|name| pool.get_message_by_name(name).is_some());
    let Some(name) = known else { return Err(ProtobufError::Unknown { api_version, kind }) };
    let mut out = object(&message(&pool, name, &raw)?, 0)?;
    out["apiVersion"] = api_version.into();
    out["kind"] = kind.into();
    // Its messages end somewhere; the JSON that some of them carry need not.
    if depth(&out, 0) > DOCUMENT_DEPTH_MAX && guards::on("protobuf-depth") {
        let why = format!("it is nested deeper than {DOCUMENT_DEPTH_MAX} levels");
        return Err(ProtobufError::Malformed(why));
    }
    Ok(out)
}

fn pool() -> Result<DescriptorPool, ProtobufError> {
    let mut bytes = Vec::new();
    GzDecoder::new(DESCRIPTORS)
        .take(DESCRIPTORS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|e| ProtobufError::Malformed(e.to_string()))?;
    DescriptorPool::decode(bytes.as_slice()).map_err(|e| ProtobufError::Malformed(e.to_string()))
}

fn message(
    pool: &DescriptorPool,
    name: &str,
    bytes: &[u8],
) -> Result<DynamicMessage, ProtobufError> {
    let descriptor = pool
        .get_message_by_name(name)
        .ok_or_else(|| ProtobufError::Malformed(format!("no message {name}")))?;
    DynamicMessage::decode(descriptor, bytes).map_err(|e| ProtobufError::Malformed(e.to_string()))
}

fn object(message: &DynamicMessage, depth: usize) -> Result<Json, ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::Malformed(format!("nested deeper than {DEPTH_MAX}")));
    }
    if let Some(scalar) = special(message) {
        return Ok(scalar);
    }
    let mut out = Map::new();
    for (field, value) in message.fields() {
        let name = field.name();
        if let (Value::Message(inner), true) = (value, INLINED.contains(&name)) {
            if let Json::Object(inner) = object(inner, depth + 1)? {
                out.extend(inner);
            }
            continue;
        }
        if let Some(value) = field_value(&field, value, depth)? {
            out.insert(name.to_owned(), value);
        }
    }
    Ok(Json::Object(out))
}

fn field_value(
    field: &FieldDescriptor,
    value: &Value,
    depth: usize,
) -> Result<Option<Json>, ProtobufError> {
    let zero_speaks = ZERO_SPEAKS.contains(&field.name());
    Ok(match value {
        Value::List(all) if all.is_empty() => None,
        Value::Map(map) if map.is_empty() => None,
        Value::String(s) if s.is_empty() => None,
        Value::Bool(false) if !zero_speaks => None,
        Value::I32(0) | Value::I64(0) | Value::U32(0) | Value::U64(0) if !zero_speaks => None,
        Value::Message(_) => match json_of(value, depth)? {
            Json::Null => None,
            // An IntOrString without content is an absent one, except where 0 is an answer.
            Json::Number(n) if n.as_i64() == Some(0) && field.name() == "targetPort" => None,
            Json::Object(map) if map.is_empty() && field.name() == "status" => None,
            value => Some(value),
        },
        value => Some(json_of(value, depth)?),
    })
}

fn json_of(value: &Value, depth: usize) -> Result<Json, ProtobufError> {
    Ok(match value {
        Value::Bool(b) => json!(b),
        Value::I32(n) | Value::EnumNumber(n) => json!(n),
        Value::I64(n) => json!(n),
        Value::U32(n) => json!(n),
        Value::U64(n) => json!(n),
        Value::F32(n) => json!(n),
        Value::F64(n) => json!(n),
        Value::String(s) => json!(s),
        Value::Bytes(b) => json!(STANDARD.encode(b)),
        Value::Message(m) => object(m, depth + 1)?,
        Value::List(all) => {
            Json::Array(all.iter().map(|v| json_of(v, depth + 1)).collect::<Result<_, _>>()?)
        }
        Value::Map(map) => {
            let mut entries: Vec<(String, Json)> = Vec::with_capacity(map.len());
            for (key, value) in map {
                let key = match key {
                    MapKey::String(s) => s.clone(),
                    other => format!("{other:?}"),
                };
                entries.push((key, json_of(value, depth + 1)?));
            }
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(entries.into_iter().collect())
        }
    })
}

/// Messages that JSON writes as scalars.
fn special(message: &DynamicMessage) -> Option<Json> {
    let number = |name: &str| match message.get_field_by_name(name).as_deref() {
        Some(Value::I64(n)) => *n,
        Some(Value::I32(n)) => i64::from(*n),
        _ => 0,
    };
    let word = |name: &str| match message.get_field_by_name(name).as_deref() {
        Some(Value::String(s)) => s.clone(),
        _ => String::new(),
    };
    let descriptor = message.descriptor();
    match descriptor.full_name() {
        "k8s.io.apimachinery.pkg.apis.meta.v1.Time"
        | "k8s.io.apimachinery.pkg.apis.meta.v1.MicroTime" => {
            let (seconds, nanos) = (number("seconds"), number("nanos"));
            if seconds == 0 && nanos == 0 {
                return Some(Json::Null);
            }
            let nanos = i32::try_from(nanos).unwrap_or(0);
            let time = jiff::Timestamp::new(seconds, nanos).ok()?;
            Some(json!(time.to_string()))
        }
        "k8s.io.apimachinery.pkg.util.intstr.IntOrString" => Some(match number("type") {
            0 => json!(number("intVal")),
            _ => json!(word("strVal")),
        }),
        "k8s.io.apimachinery.pkg.api.resource.Quantity" => Some(json!(word("string"))),
        "k8s.io.apimachinery.pkg.apis.meta.v1.FieldsV1" => {
            match message.get_field_by_name("Raw").as_deref() {
                Some(Value::Bytes(raw)) => serde_json::from_slice(raw).ok(),
                _ => Some(json!({})),
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Go would write: `fields` as reflection fills them, wrapped in `runtime.Unknown`.
    fn body(api_version: &str, kind: &str, name: &str, fields: &Json) -> Vec<u8> {
        let pool = pool().unwrap();
        let raw = fill(&pool, name, fields);
        let mut meta = DynamicMessage::new(
            pool.get_message_by_name("k8s.io.apimachinery.pkg.runtime.TypeMeta").unwrap(),
        );
        meta.set_field_by_name("apiVersion", Value::String(api_version.into()));
        meta.set_field_by_name("kind", Value::String(kind.into()));
        let mut unknown = DynamicMessage::new(
            pool.get_message_by_name("k8s.io.apimachinery.pkg.runtime.Unknown").unwrap(),
        );
        unknown.set_field_by_name("typeMeta", Value::Message(meta));
        unknown.set_field_by_name(
            "raw",
            Value::Bytes(prost_reflect::prost::Message::encode_to_vec(&raw).into()),
        );
        let mut out = MAGIC.to_vec();
        out.extend(prost_reflect::prost::Message::encode_to_vec(&unknown));
        out
    }

    fn fill(pool: &DescriptorPool, name: &str, fields: &Json) -> DynamicMessage {
        let mut out = DynamicMessage::new(pool.get_message_by_name(name).unwrap());
        for (key, value) in fields.as_object().unwrap() {
            let field = out.descriptor().get_field_by_name(key).unwrap_or_else(|| panic!("{key}"));
            let one = |v: &Json| match (v, field.kind()) {
                (Json::Object(_), prost_reflect::Kind::Message(m)) => {
                    Value::Message(fill(pool, m.full_name(), v))
                }
                (Json::String(s), prost_reflect::Kind::Bytes) => Value::Bytes(s.clone().into()),
                (Json::String(s), _) => Value::String(s.clone()),
                (Json::Number(n), prost_reflect::Kind::Int64) => Value::I64(n.as_i64().unwrap()),
                (Json::Number(n), _) => Value::I32(n.as_i64().unwrap().try_into().unwrap()),
                (Json::Bool(b), _) => Value::Bool(*b),
                other => panic!("{other:?}"),
            };
            let value = match value {
                Json::Array(all) => Value::List(all.iter().map(one).collect()),
                Json::Object(map) if field.is_map() => {
                    let entries = map.iter().map(|(k, v)| {
                        let bytes = matches!(field.kind(), prost_reflect::Kind::Message(m)
                            if m.map_entry_value_field().kind() == prost_reflect::Kind::Bytes);
                        let text = v.as_str().unwrap().to_owned();
                        let v = if bytes { Value::Bytes(text.into()) } else { Value::String(text) };
                        (MapKey::String(k.clone()), v)
                    });
                    Value::Map(entries.collect())
                }
                other => one(other),
            };
            out.set_field(&field, value);
        }
        out
    }

    #[test]
    fn a_deployment_reads_like_its_json() {
        let bytes = body(
            "apps/v1",
            "Deployment",
            "k8s.io.api.apps.v1.Deployment",
            &json!({
                "metadata": {"name": "d", "namespace": "", "labels": {"app": "d"}, "generation": 0,
                    "creationTimestamp": {}},
                "spec": {"replicas": 0, "minReadySeconds": 0, "paused": false,
                    "selector": {"matchLabels": {"app": "d"}},
                    "strategy": {"type": ""},
                    "template": {"metadata": {"name": ""}, "spec": {
                        "volumes": [{"name": "v", "volumeSource": {"configMap": {
                            "localObjectReference": {"name": "cm"}}}}],
                        "containers": [{"name": "c", "image": "i:1",
                            "ports": [{"containerPort": 80, "hostPort": 0}],
                            "readinessProbe": {"handler": {"httpGet": {
                                "port": {"type": 1, "strVal": "http"}}}, "periodSeconds": 0}}]}}},
                "status": {"replicas": 0},
            }),
        );
        assert_eq!(
            decode(&bytes).unwrap()["spec"],
            json!({
                "replicas": 0, "strategy": {},
                "selector": {"matchLabels": {"app": "d"}},
                "template": {"metadata": {}, "spec": {
                    "volumes": [{"name": "v", "configMap": {"name": "cm"}}],
                    "containers": [{"name": "c", "image": "i:1", "ports": [{"containerPort": 80}],
                        "readinessProbe": {"httpGet": {"port": "http"}}}]}},
            })
        );
    }

    #[test]
    fn secrets_services_and_reviews() {
        let bytes = body(
            "v1",
            "Secret",
            "k8s.io.api.core.v1.Secret",
            &json!({
            "metadata": {"name": "s", "creationTimestamp": {"seconds": 1, "nanos": 0}},
            "data": {"k": "v"}, "type": "Opaque"}),
        );
        assert_eq!(
            decode(&bytes).unwrap(),
            json!({
            "metadata": {"name": "s", "creationTimestamp": "1970-01-01T00:00:01Z"},
            "data": {"k": "dg=="}, "type": "Opaque", "apiVersion": "v1", "kind": "Secret"})
        );
        let bytes = body(
            "v1",
            "Service",
            "k8s.io.api.core.v1.Service",
            &json!({
            "spec": {"ports": [{"port": 80, "nodePort": 0, "targetPort": {"type": 0, "intVal": 0}},
                {"port": 81, "targetPort": {"type": 0, "intVal": 8080}}]}}),
        );
        assert_eq!(
            decode(&bytes).unwrap()["spec"]["ports"],
            json!([{"port": 80}, {"port": 81, "targetPort": 8080}])
        );
        let bytes = body(
            "authorization.k8s.io/v1",
            "SelfSubjectAccessReview",
            "k8s.io.api.authorization.v1.SelfSubjectAccessReview",
            &json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        );
        assert_eq!(decode(&bytes).unwrap()["spec"]["resourceAttributes"]["verb"], "get");
    }

    #[test]
    fn reg_56_protobuf_that_carries_deep_json_is_refused() {
        let carried = |depth: usize| {
            let raw = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
            let fields = json!({"metadata": {"name": "m", "managedFields": [
                {"manager": "m", "fieldsV1": {"Raw": raw}}]}});
            decode(&body("v1", "ConfigMap", "k8s.io.api.core.v1.ConfigMap", &fields)).map(|_| ())
        };
        carried(40).unwrap();
        let error = carried(90).expect_err("it is taken").to_string();
        assert!(error.contains("deeper than 64"), "{error}");
    }

    #[test]
    fn nonsense_is_an_error_never_a_panic() {
        assert!(matches!(decode(b"{}"), Err(ProtobufError::NoMagic)));
        assert!(decode(b"k8s\0\xff\xff\xff").is_err());
        let bytes = body("v1", "Unicorn", "k8s.io.api.core.v1.Secret", &json!({}));
        let error = decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("Unicorn of \"v1\""), "{error}");
        let mut rng = weft_base::rng::Rng::seeded(1);
        for _ in 0..300 {
            let mut noise = MAGIC.to_vec();
            noise.extend((0..rng.below(60)).map(|_| u8::try_from(rng.below(256)).unwrap()));
            let _ = decode(&noise);
        }
    }
}
