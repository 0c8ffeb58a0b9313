// SPDX-License-Identifier: Apache-2.0
//! Consul's API for hosts: what came to a machine's own door is answered here, and what is
//! registered with it comes into the catalog under its node. Which machine it is its certificate
//! says; what its clients may do their tokens say.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use weft_identity::token::Allowed;
use weft_kinds::kind::KindId;
use weft_server::consul::Door;
use weft_server::consul::host::HostAsk;
use weft_server::consul::sync::SyncAsk;
use weft_xds::agent::{ConsulAnswer, ConsulAsk, Refusal};
use weft_xds::server::Peer;

use super::super::resolver;
use super::{Caller, HostDoor};

impl HostDoor {
    /// The same with a door that answers, and that says what of Consul's names is seen.
    #[must_use]
    pub fn attached(self, consul: Door) -> Self {
        let names = resolver::names(&self.registry, "server", Some(consul.clone()));
        Self { names, consul: Some(consul), ..self }
    }

    pub(super) async fn consul_now(
        self,
        peer: Peer,
        ask: ConsulAsk,
    ) -> Result<ConsulAnswer, Refusal> {
        let caller = self.caller(&peer)?;
        if let Some(why) = self.refused(&caller)? {
            let kind = ("content-type".to_owned(), "text/plain; charset=utf-8".to_owned());
            return Ok(ConsulAnswer { status: 403, headers: vec![kind], body: why.into_bytes() });
        }
        let ConsulAsk { method, target, token, body } = ask;
        let ask = HostAsk { method, target, token, body: body.into() };
        let (status, headers, body) = self.door()?.for_host(&caller.name, ask).await;
        Ok(ConsulAnswer { status, headers, body: body.into() })
    }

    pub(super) async fn consul_token_now(
        self,
        peer: Peer,
        token: String,
    ) -> Result<Vec<u8>, Refusal> {
        self.caller(&peer)?;
        Ok(self.door()?.token_json(&token))
    }

    pub(super) async fn consul_sync_now(
        self,
        peer: Peer,
        json: Vec<u8>,
    ) -> Result<Vec<u8>, Refusal> {
        let caller = self.caller(&peer)?;
        if let Some(why) = self.refused(&caller)? {
            return Err(Refusal::Denied(why));
        }
        let ask: SyncAsk = serde_json::from_slice(&json)
            .map_err(|why| Refusal::Invalid(format!("what is told cannot be read: {why}")))?;
        let address = self.address_of(&caller.name);
        let done = self.door()?.sync(&caller.name, address, ask).await;
        let answer = done.map_err(|refusal| match refusal.status.is_client_error() {
            true => Refusal::Invalid(refusal.text),
            false => Refusal::Unavailable(refusal.text),
        })?;
        Ok(serde_json::to_vec(&answer).unwrap_or_default())
    }

    /// Without access lists a machine speaks for its clients, and one that may act as some service
    /// accounts only was not given that.
    fn refused(&self, caller: &Caller) -> Result<Option<String>, Refusal> {
        let limited = matches!(caller.allowed, Allowed::Only(_));
        Ok((limited && self.door()?.is_open()).then(|| {
            format!(
                "Permission denied: the token of machine {} allows some service accounts only, \
                 and without access lists (`weft server --consul-acl`) nobody judges its clients",
                caller.name
            )
        }))
    }

    fn door(&self) -> Result<&Door, Refusal> {
        let starting = || Refusal::Unavailable("the server is starting".into());
        self.consul.as_ref().ok_or_else(starting)
    }

    /// Where the machine is, as the server believes it.
    fn address_of(&self, host: &str) -> IpAddr {
        let world = self.registry.now();
        let node = world.get(KindId::Node, "", host);
        let addresses = node.and_then(|n| n.raw.pointer("/status/addresses")?.as_array());
        let internal = |a: &&Value| a["type"] == "InternalIP";
        let found = addresses.and_then(|all| all.iter().find(internal)?["address"].as_str());
        found.and_then(|a| a.parse().ok()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}
