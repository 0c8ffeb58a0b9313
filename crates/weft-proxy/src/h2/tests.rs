// SPDX-License-Identifier: Apache-2.0
//! A client's connection to a whole gateway over real sockets, with frames written by hand and an
//! upstream that counts.

mod abuse;
mod answers;
mod exact;
mod frames;
mod late;
mod passing;
mod paths;
mod peer;
mod stuck;

use std::time::Duration;

use self::frames::Wire;
use self::peer::LIBRARY;
use crate::config::ProxyConfig;
use crate::guards;
use crate::tests::bed::{
    Bed, Server, config, gateway, gateway_route, http_service, rule, text, to,
};
use weft_model::Action;

/// A gateway in front of one upstream.
pub struct Front {
    pub bed: Bed,
    pub origin: Server,
    /// Stands where the gateway does, where the case is to be shown to fail.
    peer: Option<Server>,
}

// === impl Front ===

impl Front {
    /// Its upstream answers after `pause`.
    async fn slow(pause: Duration, edit: impl FnOnce(&mut ProxyConfig)) -> Self {
        let origin = Server::http(move |_, _| async move {
            tokio::time::sleep(pause).await;
            text(200, "answer")
        })
        .await;
        Self::before(origin, edit).await
    }

    async fn before(origin: Server, edit: impl FnOnce(&mut ProxyConfig)) -> Self {
        let mut config = config("gateway~shop~web");
        edit(&mut config);
        let bed = Bed::start(config, None).await;
        let mut resources = http_service("users", &[origin.address]);
        resources.push(gateway(None));
        let all = rule("/", Action::Forward(vec![to("users", "", 1)]));
        resources.push(gateway_route("r", &[], vec![all]));
        bed.apply(1, resources).await;
        let peer = match guards::on(LIBRARY) {
            true => None,
            false => Some(peer::naive(origin.address).await),
        };
        Self { bed, origin, peer }
    }

    async fn fast() -> Self {
        Self::slow(Duration::ZERO, |_| {}).await
    }

    async fn open(&self) -> Wire {
        let peer = self.peer.as_ref().map(|peer| peer.address);
        Wire::open(peer.unwrap_or_else(|| self.bed.listener())).await
    }
}
