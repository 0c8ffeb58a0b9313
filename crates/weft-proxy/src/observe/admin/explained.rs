// SPDX-License-Identifier: Apache-2.0
//! `/explain`: why this proxy would answer a request as it would, by the table that it serves from
//! and by what it knows of its instances now.

use serde_json::{Value, json};
use weft_base::clock::Mono;

use crate::config::{NodeKind, ProxyConfig};
use crate::explain::{Asked, explain_live};
use crate::table::Table;

/// # Errors
/// What is wrong with the question.
pub fn answer(
    config: &ProxyConfig,
    table: &Table,
    now: Mono,
    query: &str,
) -> Result<Value, String> {
    let asked = Asked::from_query(query)?;
    let (place, request) = match config.node.kind {
        NodeKind::Sidecar => asked.at_sidecar()?,
        NodeKind::Gateway => asked.at_gateway(table)?,
    };
    let said = explain_live(table, &place, &request, now);
    let mut value = serde_json::to_value(said).map_err(|e| e.to_string())?;
    if let Value::Object(fields) = &mut value {
        fields.insert("proxy".to_owned(), config.node.to_string().into());
        fields.insert("generation".to_owned(), table.generation.into());
        let live = json!({ "asked": true, "held": is_held(table, &asked.host) });
        fields.insert("live".to_owned(), live);
    }
    Ok(value)
}

/// Whether the table says all that there is to say of a host: of a large mesh, a proxy holds what
/// it was asked for.
fn is_held(table: &Table, host: &str) -> bool {
    let unheld = &table.unheld;
    !unheld.partial || table.host(host).is_some() || unheld.absent.contains(host)
}
