// SPDX-License-Identifier: Apache-2.0
//! What was found, made ready to be written into any number of answers: names in wire form, data
//! as bytes. Made by `answer.rs` from [`Found`], kept by the [`Cache`] as long as the World is the
//! same, written by `write.rs`. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_base::limits::{DNS_CACHED_RECORDS_MAX, DNS_TEXT_BYTES_MAX};

use super::find::{Data, Found, apex_name, name_server};
use super::names::{Zone, Zones};
use super::query::{NAME_BYTES_MAX, Name};

/// Consul's answers are not to be kept; Kubernetes' for as long as its own DNS says.
const TTL_CONSUL: u32 = 0;
const TTL_CLUSTER: u32 = 5;
/// Bytes of a label, and of one string of a TXT record.
const LABEL_BYTES_MAX: usize = 63;
const STRING_BYTES_MAX: usize = 255;

pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;

/// A name in wire form.
pub type Wire = Box<[u8]>;

/// Addresses by which answer's target has them.
type Glue = HashMap<usize, Vec<IpAddr>>;

/// Everything an answer can say.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready {
    pub exists: bool,
    /// Data of the name asked for, in no order unless said below.
    pub answers: Vec<Rdata>,
    /// They are told as they stand.
    pub in_order: bool,
    pub ttl: u32,
    /// What an alias leads to, in order.
    pub chain: Vec<(Wire, Rdata)>,
    /// Addresses of names that no SRV record of `answers` has.
    pub additional: Vec<(Wire, IpAddr)>,
    /// How the zone begins: said where there are no answers.
    pub apex: Wire,
    pub soa: Rdata,
    pub zone_ttl: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Rdata {
    Address(IpAddr),
    /// Weight and port, the target, and its addresses.
    Srv {
        weight: u16,
        port: u16,
        target: Wire,
        addresses: Vec<IpAddr>,
    },
    /// CNAME, PTR or NS.
    Name(u16, Wire),
    Txt(Box<[u8]>),
    Soa {
        server: Wire,
        mailbox: Wire,
        serial: u32,
        minimum: u32,
    },
}

/// Answers by what was asked, all of one World. What is not there is not kept: who asks for
/// names at random fills nothing.
#[derive(Debug, Default)]
pub struct Cache {
    known: HashMap<Box<[u8]>, Arc<Ready>>,
    records: usize,
    key: Vec<u8>,
}

// === impl Ready ===

impl Ready {
    pub fn new(found: &Found, zone: Zone, zones: &Zones, revision: u64) -> Self {
        let zone_ttl = ttl(zone);
        let serial = u32::try_from(revision & 0xffff_ffff).unwrap_or(0);
        let soa = || Rdata::soa(zone, zones, serial);
        let (glue, additional) = glue(found);
        let rdata = |data: &Data| match data {
            Data::Address(address) => Some(Rdata::Address(*address)),
            // A registered address that is no host name has no form here.
            Data::Srv { weight, port, target } => Some(Rdata::Srv {
                weight: *weight,
                port: *port,
                target: wire(target)?,
                addresses: Vec::new(),
            }),
            Data::Cname(name) => Some(Rdata::Name(CNAME, wire(name)?)),
            Data::Ptr(name) => Some(Rdata::Name(PTR, wire(name)?)),
            Data::Txt(text) => Some(Rdata::Txt(strings(text))),
            Data::Soa => Some(soa()),
            Data::Ns => Some(Rdata::Name(NS, wire(&name_server(zone, zones))?)),
        };
        let mut answers = Vec::with_capacity(found.answers.len());
        for (at, data) in found.answers.iter().enumerate() {
            let Some(mut ready) = rdata(data) else { continue };
            if let (Rdata::Srv { addresses, .. }, Some(own)) = (&mut ready, glue.get(&at)) {
                addresses.clone_from(own);
            }
            answers.push(ready);
        }
        let chain =
            found.chain.iter().filter_map(|(owner, data)| Some((wire(owner)?, rdata(data)?)));
        Self {
            exists: found.exists,
            answers,
            in_order: found.in_order,
            ttl: found.ttl.unwrap_or(zone_ttl),
            chain: chain.collect(),
            additional,
            apex: wire(apex_name(zone, zones)).unwrap_or_else(|| Box::new([0])),
            soa: soa(),
            zone_ttl,
        }
    }

    fn records(&self) -> usize {
        1 + self.answers.len() + self.chain.len() + self.additional.len()
    }
}

impl Rdata {
    fn soa(zone: Zone, zones: &Zones, serial: u32) -> Self {
        let root = || -> Wire { Box::new([0]) };
        let mailbox = format!("hostmaster.{}", apex_name(zone, zones));
        Self::Soa {
            server: wire(&name_server(zone, zones)).unwrap_or_else(root),
            mailbox: wire(&mailbox).unwrap_or_else(root),
            serial,
            minimum: ttl(zone),
        }
    }

    pub fn rtype(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => A,
            Self::Address(IpAddr::V6(_)) => AAAA,
            Self::Srv { .. } => SRV,
            Self::Name(rtype, _) => *rtype,
            Self::Txt(_) => TXT,
            Self::Soa { .. } => SOA,
        }
    }
}

// === impl Cache ===

impl Cache {
    pub fn clear(&mut self) {
        self.known.clear();
        self.records = 0;
    }

    pub fn get(&mut self, name: &Name, rtype: u16) -> Option<Arc<Ready>> {
        self.key.clear();
        self.key.extend_from_slice(&rtype.to_be_bytes());
        self.key.extend_from_slice(name.as_bytes());
        self.known.get(self.key.as_slice()).cloned()
    }

    /// Keeps an answer to what was asked for last.
    pub fn put(&mut self, ready: &Arc<Ready>) {
        if !ready.exists {
            return;
        }
        if self.records + ready.records() > DNS_CACHED_RECORDS_MAX {
            self.clear();
        }
        self.records += ready.records();
        self.known.insert(self.key.as_slice().into(), ready.clone());
    }
}

// === helpers ===

/// Addresses under the first SRV record that names their owner, and those that none does.
fn glue(found: &Found) -> (Glue, Vec<(Wire, IpAddr)>) {
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (at, data) in found.answers.iter().enumerate() {
        if let Data::Srv { target, .. } = data {
            first.entry(target).or_insert(at);
        }
    }
    let (mut under, mut others) = (Glue::new(), Vec::new());
    for (name, address) in &found.additional {
        match first.get(name.as_str()) {
            Some(at) => {
                let list = under.entry(*at).or_default();
                if !list.contains(address) {
                    list.push(*address);
                }
            }
            None => others.extend(wire(name).map(|name| (name, *address))),
        }
    }
    (under, others)
}

fn ttl(zone: Zone) -> u32 {
    match zone {
        Zone::Consul => TTL_CONSUL,
        Zone::Cluster | Zone::ReverseV4 | Zone::ReverseV6 => TTL_CLUSTER,
    }
}

/// A name's wire form, if it has one.
pub fn wire(text: &str) -> Option<Wire> {
    let mut out = Vec::with_capacity(text.len() + 2);
    let text = text.strip_suffix('.').unwrap_or(text);
    for label in text.split('.') {
        let plain = label.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
        if label.is_empty() || label.len() > LABEL_BYTES_MAX || !plain {
            return None;
        }
        out.push(u8::try_from(label.len()).ok()?);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    (out.len() <= NAME_BYTES_MAX).then(|| out.into())
}

/// A text as strings of a TXT record.
fn strings(text: &str) -> Box<[u8]> {
    let mut bytes = text.as_bytes();
    bytes = bytes.get(..DNS_TEXT_BYTES_MAX).unwrap_or(bytes);
    if bytes.is_empty() {
        return Box::new([0]);
    }
    let mut out = Vec::with_capacity(bytes.len() + 4);
    for chunk in bytes.chunks(STRING_BYTES_MAX) {
        out.push(u8::try_from(chunk.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(chunk);
    }
    out.into()
}
