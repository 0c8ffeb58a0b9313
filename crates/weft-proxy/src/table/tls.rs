// SPDX-License-Identifier: Apache-2.0
//! Server certificates of gateway listeners, made ready when the table is built. The sections of a
//! port may be of several owners: one that cannot be used answers nothing, and the others go on.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use weft_base::clock::Clock;
use weft_identity::outside::{self, Asked, Served};
use weft_model::{GatewayListener, Protocol, Section, ServerTls};

use super::GatewayEntry;
use crate::guards;

/// A host name (or `*`) and what is presented for it; nothing is where it cannot be used.
pub type ServedName = (Arc<str>, Option<Arc<Presented>>);

/// A certificate in use.
#[derive(Debug)]
pub struct Presented {
    pub config: Arc<ServerConfig>,
    pub key: Arc<CertifiedKey>,
    /// Where it comes from, for people.
    pub from: Option<Arc<str>>,
    /// When it runs out, seconds since the epoch.
    pub until: i64,
}

/// One value per section that has a certificate, in their order. `before` is what the listener was:
/// what did not change goes on with its sessions, and a certificate that cannot be used leaves the
/// one before it in place, as long as nothing else is asked of its section.
pub fn configs(
    listener: &GatewayListener,
    before: Option<&GatewayEntry>,
    clock: &Clock,
) -> Vec<ServedName> {
    let made = |section: &Section| {
        let tls = section.tls.as_ref()?;
        let name = section.hostname.clone().unwrap_or_else(|| "*".into());
        if tls.closed {
            return Some((name, None));
        }
        let old = before.and_then(|before| served(before, section));
        let config = match old {
            Some((same, config)) if same == section || !guards::on("tls-settings") => {
                config.clone()
            }
            _ => config(section, tls, clock).map(Some).unwrap_or_else(|_| {
                let kept =
                    old.filter(|(old, _)| without_certificate(old) == without_certificate(section));
                kept.and_then(|(_, config)| config.clone())
            }),
        };
        Some((name, config))
    };
    listener.sections.iter().filter_map(made).collect()
}

/// What of a listener's TLS cannot be used, and why: of these sections, or of all of it when none
/// is named.
pub fn unusable(listener: &GatewayListener, clock: &Clock) -> Option<(String, Vec<String>)> {
    // Of what is closed its owner was told.
    let open = |s: &&Section| s.tls.as_ref().is_some_and(|tls| !tls.closed);
    let with_tls = listener.sections.iter().filter(open).filter_map(|s| Some((s, s.tls.as_ref()?)));
    let of = |(section, tls): (&Section, &ServerTls)| {
        Some((section.name.to_string(), config(section, tls, clock).err()?))
    };
    let (mut names, sections): (Vec<_>, Vec<_>) = with_tls.filter_map(of).unzip();
    let shown = listener.backend_certificate.as_ref().and_then(|shown| {
        let made = outside::certified(&shown.chain_pem, &shown.key_pem);
        made.err().map(|e| format!("the certificate for backends cannot be used: {e}"))
    });
    if shown.is_some() {
        names.clear();
    }
    let mut all = shown.into_iter().chain(sections);
    let first = all.next()?;
    match all.count() {
        0 => Some((first, names)),
        more => Some((format!("{first}; and so it is with {more} more"), names)),
    }
}

/// A section as it was, by its name, and what was presented for it.
fn served<'a>(
    before: &'a GatewayEntry,
    section: &Section,
) -> Option<(&'a Section, &'a Option<Arc<Presented>>)> {
    let with_tls = before.listener.sections.iter().filter(|s| s.tls.is_some());
    let mut all = with_tls.zip(before.tls.iter().map(|(_, config)| config));
    all.find(|(old, _)| old.name == section.name)
}

fn without_certificate(section: &Section) -> Section {
    let mut section = section.clone();
    if let Some(tls) = &mut section.tls {
        (tls.chain_pem, tls.key_pem) = ("".into(), "".into());
    }
    section
}

fn config(section: &Section, tls: &ServerTls, clock: &Clock) -> Result<Arc<Presented>, String> {
    let wrong = |what: &str, why: String| {
        format!("the {what} of listener {:?} cannot be used: {why}", &*section.name)
    };
    let key = outside::certified(&tls.chain_pem, &tls.key_pem)
        .map_err(|e| wrong(if e.is_of_key() { "key" } else { "certificate" }, e.to_string()))?;
    let clients = tls.clients.as_ref().map(|clients| {
        let roots = outside::roots(&clients.ca_pem)
            .map_err(|e| wrong("clients' authority", e.to_string()))?;
        Ok::<_, String>(Asked { roots, required: clients.required, insecure: clients.insecure })
    });
    let alpn = match tls.alpn.as_slice() {
        _ if !guards::on("alpn-known") => Vec::new(),
        [] if section.protocol == Protocol::Tcp => Vec::new(),
        [] => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        named => named.iter().map(|p| p.as_bytes().to_vec()).collect(),
    };
    let clients = clients.transpose()?;
    let served = Served { key: key.clone(), clients, alpn, only_13: tls.only_13 };
    let config =
        outside::server(&served, clock).map_err(|e| wrong("certificate", e.to_string()))?;
    let until = outside::shown(Some(&key.cert)).map_or(i64::MAX, |leaf| leaf.until);
    let from = tls.from.clone();
    Ok(Arc::new(Presented { config: Arc::new(config), key, from, until }))
}
