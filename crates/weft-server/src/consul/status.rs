// SPDX-License-Identifier: Apache-2.0
//! `/v1/status/*` and `/v1/coordinate/*`: one server, its own leader, at the origin of space.

use serde_json::{Value, json};

use super::Door;
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;
use super::view::SERVER_RPC_PORT;

impl Door {
    pub(super) fn status_leader(&self) -> Result<Reply, Refusal> {
        Ok(Reply::json(json!(self.leader_address())))
    }

    pub(super) fn status_peers(&self) -> Result<Reply, Refusal> {
        Ok(Reply::json(json!([self.leader_address()])))
    }

    pub(super) fn coordinate_datacenters(&self) -> Result<Reply, Refusal> {
        let name = format!("{}.{}", self.own().node.node, self.own().datacenter);
        let here = json!({"Node": name, "Coord": origin()});
        Ok(Reply::json(json!([{
            "Datacenter": self.own().datacenter, "AreaID": "wan", "Coordinates": [here],
        }])))
    }

    pub(super) fn coordinate_nodes(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let blocking = ask.params.blocking()?;
        let here = json!([{"Node": self.own().node.node, "Segment": "", "Coord": origin()}]);
        Ok(Reply::json(here).at(1, &blocking))
    }

    pub(super) fn leader_address(&self) -> String {
        let address = &self.own().node.address;
        match address.contains(':') {
            true => format!("[{address}]:{SERVER_RPC_PORT}"),
            false => format!("{address}:{SERVER_RPC_PORT}"),
        }
    }
}

/// A network coordinate that says nothing: weft picks by locality, not by coordinates.
pub(super) fn origin() -> Value {
    json!({"Vec": [0, 0, 0, 0, 0, 0, 0, 0], "Error": 1.5, "Adjustment": 0, "Height": 0.00001})
}
