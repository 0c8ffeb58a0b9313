// SPDX-License-Identifier: Apache-2.0
//! `Connect.SidecarService`: the proxy that is registered beside a service, with what Consul's
//! agent fills in. Pure but for its port, which is the first that is free on the node.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::sync::MutexGuard;
use weft_kinds::views::catalog::{CheckRecord, Registration};
use weft_registry::catalog::registration_key;

use super::Door;
use super::body::Fields;
use super::error::Refusal;
use super::register;

/// Where Consul's agent puts sidecars that name no port.
const PORTS: RangeInclusive<u16> = 21_000..=21_255;

/// For a turn to choose one.
const TURN_MAX: Duration = Duration::from_secs(10);

/// A sidecar that a body asks for.
#[derive(Debug)]
pub struct Sidecar {
    pub registration: Registration,
    checks: Vec<CheckRecord>,
    /// Where its own port is asked, while nobody says otherwise.
    host: String,
    parent: String,
}

// === impl Sidecar ===

impl Sidecar {
    /// # Errors
    /// When a field of it is wrong; the text names it.
    pub fn read(body: &Map<String, Value>, parent: &Registration) -> Result<Option<Self>, Refusal> {
        const AT: &str = "Connect.SidecarService.";
        let Some(connect) = Fields::new(body, "").object("Connect")? else { return Ok(None) };
        let Some(asked) = Fields::new(connect, "Connect.").object("SidecarService")? else {
            return Ok(None);
        };
        register::known::fields(asked, register::known::AGENT_SERVICE)?;
        let fields = Fields::new(asked, AT);
        if parent.connect.is_some() {
            let text =
                "A service that is Connect Native has no SidecarService: it is its own proxy";
            return Err(Refusal::bad(text));
        }
        if !fields.text("ID")?.is_empty() {
            let text = "A SidecarService cannot specify an ID as this is managed by the agent";
            return Err(Refusal::bad(text));
        }
        let nested = fields.object("Connect")?.map(|own| Fields::new(own, "Connect."));
        if nested.is_some_and(|own| own.value("SidecarService").is_some()) {
            return Err(Refusal::bad("A SidecarService cannot have a nested SidecarService"));
        }
        let mut own = asked.clone();
        if fields.text("Name")?.is_empty() {
            own.retain(|name, _| !super::body::same(name, "Name"));
            own.insert("Name".into(), json!(format!("{}-sidecar-proxy", parent.service)));
        }
        let mut registration = register::service(&own, AT, "Name", true)?;
        registration.id = format!("{}-sidecar-proxy", parent.id).into();
        registration.namespace.clone_from(&parent.namespace);
        registration.node.clone_from(&parent.node);
        if registration.kind.is_empty() {
            registration.kind = "connect-proxy".into();
        }
        if registration.tags.is_empty() {
            registration.tags.clone_from(&parent.tags);
        }
        if registration.meta.is_empty() {
            registration.meta.clone_from(&parent.meta);
        }
        let proxy = proxy(fields.object("Proxy")?, parent);
        let local = super::body::word_of(&proxy, "LocalServiceAddress").to_owned();
        let host = match registration.address.is_empty() {
            true => local,
            false => registration.address.to_string(),
        };
        registration.proxy = Some(Box::new(Value::Object(proxy)));
        register::known::service(&registration)?;
        let checks = register::service_checks(asked, &registration)?;
        Ok(Some(Self { registration, checks, host, parent: parent.id.to_string() }))
    }

    /// Its own checks; where it names none, that somebody listens at its port, and what it stands
    /// before.
    ///
    /// # Errors
    /// Never, but for checks that nobody could make.
    pub fn checks(&self) -> Result<Vec<CheckRecord>, Refusal> {
        if !self.checks.is_empty() {
            return Ok(self.checks.clone());
        }
        let (host, port) = (&self.host, self.registration.port);
        let at = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let body = json!({"Checks": [
            {"Name": "Connect Sidecar Listening", "TCP": at, "Interval": "10s"},
            {"Name": format!("Connect Sidecar Aliasing {}", self.parent),
             "AliasService": self.parent},
        ]});
        let body = body.as_object().cloned().unwrap_or_default();
        register::service_checks(&body, &self.registration)
    }
}

impl Door {
    /// A turn to choose a port, until what it was chosen for is written.
    ///
    /// # Errors
    /// 503 when others take too long.
    pub(super) async fn sidecar_turn(&self) -> Result<MutexGuard<'_, ()>, Refusal> {
        tokio::time::timeout(TURN_MAX, self.0.sidecars.lock()).await.map_err(|_| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "other sidecars are registered first, and the store is slow; try again later, or \
                 give it a Port",
            )
        })
    }

    /// The port that a sidecar has already, else the first that none on this node has.
    ///
    /// # Errors
    /// When all are taken.
    pub(super) fn sidecar_port(&self, sidecar: &Registration) -> Result<u16, Refusal> {
        let view = self.view();
        let catalog = view.world.catalog();
        if let Some(known) = catalog.registration(&registration_key(sidecar))
            && known.port != 0
        {
            return Ok(known.port);
        }
        let taken: BTreeSet<u16> = catalog.on_node(&sidecar.node).map(|(_, r)| r.port).collect();
        PORTS.into_iter().find(|port| !taken.contains(port)).ok_or_else(|| {
            Refusal::bad(format!(
                "Invalid SidecarService: none left in the configured sidecar port range [{}, {}]; \
                 give it a Port",
                PORTS.start(),
                PORTS.end()
            ))
        })
    }
}

// === helpers ===

/// What a proxy is told of the service that it stands before, whatever the case of what is given.
fn proxy(given: Option<&Map<String, Value>>, parent: &Registration) -> Map<String, Value> {
    let mut out = given.cloned().unwrap_or_default();
    for (name, value) in [
        ("DestinationServiceName", json!(parent.service)),
        ("DestinationServiceID", json!(parent.id)),
        ("LocalServiceAddress", json!("127.0.0.1")),
        ("LocalServicePort", json!(parent.port)),
        ("Mode", json!("")),
        ("MeshGateway", json!({})),
        ("Expose", json!({})),
    ] {
        let known = out.keys().find(|key| super::body::same(key, name)).cloned();
        let known = known.and_then(|key| out.shift_remove(&key));
        let is_set = |value: &Value| !value.is_null() && *value != json!("") && *value != json!(0);
        out.insert(name.to_owned(), known.filter(is_set).unwrap_or(value));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sidecar: Value) -> Result<Option<Sidecar>, String> {
        let body = json!({"name": "web", "port": 80, "tags": ["v1"], "meta": {"a": "b"},
                          "address": "10.0.0.1", "connect": {"sidecar_service": sidecar}});
        let body = body.as_object().unwrap();
        let parent = register::service(body, "", "Name", true).unwrap();
        Sidecar::read(body, &parent).map_err(|refusal| refusal.text)
    }

    #[test]
    fn what_is_not_said_is_what_consul_fills_in() {
        assert!(read(Value::Null).unwrap().is_none());
        let mut one = read(json!({})).unwrap().unwrap();
        let of = &mut one.registration;
        assert_eq!((&*of.id, &*of.service), ("web-sidecar-proxy", "web-sidecar-proxy"));
        assert_eq!((&*of.kind, &*of.address, of.port), ("connect-proxy", "", 0));
        assert_eq!((&*of.tags[0], &*of.meta["a"]), ("v1", "b"));
        let proxy = of.proxy.as_deref().unwrap();
        assert_eq!(proxy["DestinationServiceName"], "web");
        assert_eq!(
            (&proxy["LocalServiceAddress"], &proxy["LocalServicePort"]),
            (&json!("127.0.0.1"), &json!(80))
        );
        of.port = 21_007;
        let checks = one.checks().unwrap();
        let ids: Vec<&str> = checks.iter().map(|check| &*check.id).collect();
        assert_eq!(ids, ["service:web-sidecar-proxy:1", "service:web-sidecar-proxy:2"]);
        assert_eq!(&*checks[0].name, "Connect Sidecar Listening");
        assert!(format!("{:?}", checks[0].typed().probe).contains("127.0.0.1:21007"));
        assert_eq!(&*checks[1].name, "Connect Sidecar Aliasing web");
    }

    #[test]
    fn what_is_said_counts() {
        let one = read(json!({
            "Name": "front", "Port": 9, "Address": "10.0.0.9", "Tags": ["x"], "Meta": {"c": "d"},
            "Check": {"TTL": "10s"},
            "proxy": {"local_service_port": 81,
                      "upstreams": [{"destination_name": "db", "local_bind_port": 9191}]},
        }));
        let one = one.unwrap().unwrap();
        let of = &one.registration;
        assert_eq!((&*of.id, &*of.service), ("web-sidecar-proxy", "front"));
        assert_eq!((&*of.address, of.port), ("10.0.0.9", 9));
        assert_eq!((&*of.tags[0], of.meta.contains_key("a")), ("x", false));
        let proxy = of.proxy.as_deref().unwrap();
        assert_eq!(proxy["LocalServicePort"], 81);
        assert_eq!(proxy["upstreams"][0]["destination_name"], "db");
        let checks = one.checks().unwrap();
        assert_eq!((checks.len(), &*checks[0].id), (1, "service:web-sidecar-proxy"));
        for (wrong, why) in [
            (json!({"ID": "x"}), "cannot specify an ID"),
            (json!({"Connect": {"SidecarService": {}}}), "nested SidecarService"),
            (json!({"Port": "x"}), "Connect.SidecarService.Port"),
            (json!({"Kind": "bogus"}), "no such kind"),
            (json!({"Proxy": {"DestinationServiceName": "*"}}), "must not be a wildcard"),
            (json!({"Proxy": {"Upstreams": [{"DestinationName": "db"}]}}), "defined and nonzero"),
        ] {
            assert!(read(wrong.clone()).is_err_and(|text| text.contains(why)), "{wrong}");
        }
    }
}
