// SPDX-License-Identifier: Apache-2.0
//! `/v1/snapshot`: pairs, catalog and records in one file, and back. The file is a gzipped tar as
//! Consul's is, of weft's own content: the two do not read each other's.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use weft_registry::consul::Dump;

use super::Door;
use super::acl::hash;
use super::body::{part, word};
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;
use super::tar;

const FORMAT: &str = "weft-consul-1";
/// What a snapshot may unpack to, bytes.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;

impl Door {
    pub(super) async fn snapshot(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand_management()?;
        if ask.method == Method::PUT {
            let packed = ask.body.clone();
            let dump = aside(move || unpack(&packed)).await??;
            self.consul().restore(dump).await.map_err(|why| Refusal::bad(why.to_string()))?;
            self.settled().await;
            return Ok(Reply::empty());
        }
        let dump = self.consul().dump().await?;
        let index = dump.revision.to_string();
        let packed = aside(move || pack(&dump))
            .await?
            .map_err(|why| Refusal::internal(format!("the snapshot was not packed: {why}")))?;
        Ok(Reply::bytes("application/x-gzip", packed)
            .with("X-Consul-Index", index)
            .with("X-Consul-KnownLeader", "true")
            .with("X-Consul-LastContact", "0"))
    }
}

// === helpers ===

/// Work of seconds, off the threads that serve everybody.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|why| Refusal::internal(format!("the snapshot was given up: {why}")))
}

fn pack(dump: &Dump) -> std::io::Result<Vec<u8>> {
    let mut state = Vec::new();
    for (key, value) in &dump.entries {
        let line = json!({"k": key, "v": STANDARD.encode(value)});
        state.extend_from_slice(line.to_string().as_bytes());
        state.push(b'\n');
    }
    let meta = json!({"Format": FORMAT, "Version": 1, "Index": dump.revision}).to_string();
    let sums = format!("{}  meta.json\n{}  state.bin\n", hash(meta.as_bytes()), hash(&state));
    let files: [(&str, &[u8]); 3] =
        [("meta.json", meta.as_bytes()), ("state.bin", &state), ("SHA256SUMS", sums.as_bytes())];
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(&tar::write(&files))?;
    out.finish()
}

fn unpack(packed: &[u8]) -> Result<Dump, Refusal> {
    let wrong = |why: &str| Refusal::bad(format!("failed to read snapshot: {why}"));
    let mut bytes = Vec::new();
    let mut unzip = flate2::read::GzDecoder::new(packed).take(UNPACKED_BYTES_MAX + 1);
    unzip.read_to_end(&mut bytes).map_err(|_| wrong("it is no gzip file"))?;
    if bytes.len() as u64 > UNPACKED_BYTES_MAX {
        return Err(wrong("it unpacks to more than is taken back"));
    }
    let files = tar::read(&bytes).map_err(wrong)?;
    let file = |name: &str| {
        let found = files.iter().find(|(known, _)| known == name);
        found.map(|(_, bytes)| *bytes).ok_or_else(|| wrong("a file of it is missing"))
    };
    let (meta, state) = (file("meta.json")?, file("state.bin")?);
    let sums = String::from_utf8_lossy(file("SHA256SUMS")?).into_owned();
    let holds = |name: &str, bytes: &[u8]| sums.contains(&format!("{}  {name}\n", hash(bytes)));
    if !holds("meta.json", meta) || !holds("state.bin", state) {
        return Err(wrong("its content does not fit its sums"));
    }
    let meta: Value = serde_json::from_slice(meta).map_err(|_| wrong("its head is no JSON"))?;
    if word(&meta, "Format") != FORMAT {
        return Err(wrong("it was not written by this version of weft"));
    }
    let mut entries = BTreeMap::new();
    for line in state.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let line: Value = serde_json::from_slice(line).map_err(|_| wrong("a line is no JSON"))?;
        let value =
            line.get("v").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
        match (line.get("k").and_then(Value::as_str), value) {
            (Some(key), Some(value)) => entries.insert(key.into(), Bytes::from(value)),
            _ => return Err(wrong("a line is no record")),
        };
    }
    Ok(Dump { revision: part(&meta, "Index").as_u64().unwrap_or(0), entries })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_again_and_a_damaged_one_refused() {
        let key: std::sync::Arc<str> = "/k/v/default/a".into();
        let entries = BTreeMap::from([(key.clone(), Bytes::from_static(b"{}\n\0\xff"))]);
        let packed = pack(&Dump { revision: 7, entries: entries.clone() }).unwrap();
        assert_eq!(packed[..2], [0x1f, 0x8b]);
        let back = unpack(&packed).unwrap();
        assert_eq!((back.revision, back.entries), (7, entries));
        let mut broken = packed.clone();
        let middle = broken.len() / 2;
        broken[middle] ^= 0xff;
        assert!(unpack(&broken).is_err());
        assert!(unpack(b"hello").is_err());
    }
}
