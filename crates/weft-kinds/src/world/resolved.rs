// SPDX-License-Identifier: Apache-2.0
//! What names outside of the mesh resolve to, as the server's look-ups found: settings that
//! compile reads, so that it needs no resolver.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::World;

/// Settings begin so: `resolved/<name>`, `{"addresses": [...]}`.
pub const RESOLVED_SETTINGS: &str = "resolved/";

/// The setting of a name.
pub fn resolved_setting(name: &str) -> String {
    format!("{RESOLVED_SETTINGS}{}", name.to_ascii_lowercase())
}

/// The value of a name's setting.
pub fn resolved_value(addresses: &[IpAddr]) -> Value {
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    json!({ "addresses": list })
}

impl World {
    /// The addresses of a name, as they were found last; empty while nothing is known.
    pub fn resolved(&self, name: &str) -> Vec<IpAddr> {
        let setting = self.setting(&resolved_setting(name));
        let list = setting.and_then(|s| s["addresses"].as_array());
        let each = list.into_iter().flatten().filter_map(|a| a.as_str()?.parse().ok());
        each.collect()
    }
}
