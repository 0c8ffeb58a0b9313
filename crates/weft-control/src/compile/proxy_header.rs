// SPDX-License-Identifier: Apache-2.0
//! The PROXY protocol, as annotations say it: of a Gateway (its connections begin with the
//! header), of a Service (its instances are told by one who their client is). Called by `gateway`
//! and `service`; reads nothing else.

use std::sync::Arc;

use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::Meta;
use weft_kinds::views::gateway::Gateway;
use weft_kinds::world::Object;
use weft_model::{ProxyHeader, ProxyVersion, Section};

/// On a Gateway: `required` or `optional`, for all of its listeners, or for those named behind a
/// colon: `required: web, mail`.
pub const ACCEPT_ANNOTATION: &str = "weft.dev/accept-proxy-protocol";
/// On a Service: `v1` or `v2`.
pub const SEND_ANNOTATION: &str = "weft.dev/send-proxy-protocol";

/// What a Gateway's annotation says.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    header: ProxyHeader,
    /// All when empty.
    listeners: Vec<Arc<str>>,
    pub issues: Issues,
}

pub(super) fn read(object: &Object, gateway: &Gateway) -> Accepted {
    let mut out = Accepted::default();
    let Some(text) = object.meta.annotation(ACCEPT_ANNOTATION) else { return out };
    let at = FieldPath::new("metadata.annotations").field(ACCEPT_ANNOTATION);
    let (word, names) = text.split_once(':').unwrap_or((text, ""));
    out.header = match word.trim() {
        "required" => ProxyHeader::Required,
        "optional" => ProxyHeader::Optional,
        other => {
            let text = format!("{other:?} is not known; say required or optional");
            out.issues.warning(at, format!("{text}; it is not applied"));
            return out;
        }
    };
    out.listeners =
        names.split(',').map(str::trim).filter(|n| !n.is_empty()).map(Into::into).collect();
    for name in &out.listeners {
        match gateway.spec.listeners.iter().find(|l| l.name == *name) {
            None => out.issues.warning(at.clone(), format!("there is no listener {name:?}")),
            Some(listener) if &*listener.protocol == "UDP" => {
                out.issues.warning(at.clone(), format!("listener {name:?} takes datagrams"));
            }
            Some(_) => {}
        }
    }
    out
}

/// The version that a Service's instances are sent.
pub(super) fn sent(meta: &Meta) -> Option<ProxyVersion> {
    match meta.annotation(SEND_ANNOTATION)? {
        "v1" => Some(ProxyVersion::V1),
        "v2" => Some(ProxyVersion::V2),
        _ => None,
    }
}

// === impl Accepted ===

impl Accepted {
    /// What holds for a port: the header comes before anything that tells its listeners apart.
    pub fn of(&self, sections: &[Section]) -> ProxyHeader {
        let datagrams = sections.iter().any(|s| s.protocol == weft_model::Protocol::Udp);
        let named = |s: &Section| self.listeners.contains(&s.name);
        if !datagrams && (self.listeners.is_empty() || sections.iter().any(named)) {
            self.header
        } else {
            ProxyHeader::Off
        }
    }
}
