// SPDX-License-Identifier: Apache-2.0
//! Who may send which requests, as lists of policies. Data only; `decide::access` judges.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{NamedMatch, PathMatch, StringMatch};

/// One list of policies. A rule may have several such lists: every one must let a request pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    pub effect: Effect,
    pub policies: Vec<AccessPolicy>,
}

/// What a policy that takes a request means for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Only what some policy takes passes.
    Allow,
    /// What some policy takes is refused.
    Deny,
}

/// Takes a request when its client and its contents both fit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessPolicy {
    pub name: Arc<str>,
    pub who: AccessTest,
    pub what: AccessTest,
}

/// A question about a request or its client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessTest {
    Always,
    All(Vec<AccessTest>),
    OneOf(Vec<AccessTest>),
    Not(Box<AccessTest>),
    /// One value of a header fits; `:method`, `:authority`, `:scheme` and `:path` (with its query)
    /// are headers here.
    Header(NamedMatch),
    /// Without its query.
    Path(PathMatch),
    /// The port that the client came to.
    Port(u16),
    /// The address that the connection came from.
    Source(AddressRange),
    /// The client proved an identity, and it fits. Clients from outside of the mesh have those
    /// that their certificates say: any of the URIs, the DNS names, the subject.
    Identity(StringMatch),
}

/// Addresses with the same first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressRange {
    pub base: IpAddr,
    pub bits: u8,
}

/// Which connections of opaque bytes are taken. Both parts must hold; an empty list is all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionMatch {
    /// Any of the addresses that the client has.
    pub sources: Vec<AddressRange>,
    /// Any of those that it dialled.
    pub destinations: Vec<AddressRange>,
}

// === impl AddressRange ===

impl AddressRange {
    pub fn takes(&self, ip: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u8| {
            let drop = u32::from(width.saturating_sub(self.bits.min(width)));
            a.checked_shr(drop).unwrap_or(0) == b.checked_shr(drop).unwrap_or(0)
        };
        match (self.base.to_canonical(), ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}
