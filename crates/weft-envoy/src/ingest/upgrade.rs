// SPDX-License-Identifier: Apache-2.0
//! `upgrade_configs` of a connection manager and of its routes: for what requests may leave HTTP.
//! Nothing that is not listed may be asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_model::Filter;

use crate::read::Message;

/// Protocols in lower case, and whether they may be asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Upgrades(BTreeMap<Arc<str>, bool>);

// === impl Upgrades ===

impl Upgrades {
    /// The same with what a connection manager or a route says of single ones.
    pub fn with(&self, message: &Message<'_>) -> Self {
        let mut out = self.clone();
        message.each("upgrade_configs", |upgrade| {
            let on = upgrade.flag("enabled").unwrap_or(true);
            match upgrade.text("upgrade_type").unwrap_or("").to_ascii_lowercase() {
                kind if kind.is_empty() => upgrade.error("upgrade_type", "it says to what"),
                kind if kind == "connect" && on => {
                    upgrade.unsupported("upgrade_type", "CONNECT is for files of weft's own");
                }
                kind => drop(out.0.insert(kind.into(), on)),
            }
        });
        out
    }

    pub fn filter(&self) -> Filter {
        let on = self.0.iter().filter(|(_, on)| **on);
        Filter::Upgrades(on.map(|(kind, _)| kind.clone()).collect())
    }
}
