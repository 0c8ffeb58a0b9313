// SPDX-License-Identifier: Apache-2.0
//! `/v1/agent/*`, the writing half: registrations on this node, and what checks report.

use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::catalog::Status;
use weft_kinds::views::check::{NODE_MAINTENANCE, SERVICE_MAINTENANCE};
use weft_kinds::world::{CheckKey, RegistrationKey};
use weft_registry::catalog::{CatalogError, Handle, ServiceRequest, registration_key};

use super::Door;
use super::body::{self, Fields};
use super::error::Refusal;
use super::far::Coming;
use super::http::Ask;
use super::register::{self, bodies};
use super::reply::Reply;
use super::routes::Endpoint;
use super::sidecar::Sidecar;

impl Door {
    pub(super) async fn service_register(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = body::object(&ask.body)?;
        register::known::fields(&body, register::known::AGENT_SERVICE)?;
        let mut registration = register::service(&body, "", "Name", true)?;
        let node = self.own().node.clone();
        registration.namespace = self.namespace(ask, &body)?;
        registration.node.clone_from(&node.node);
        let checks = register::service_checks(&body, &registration)?;
        let replace_checks = ask.params.flag("replace-existing-checks");
        let mut sidecar = Sidecar::read(&body, &registration)?;
        // One port is given to one sidecar, whoever asks at the same time.
        let _turn = match sidecar.as_ref().is_some_and(|one| one.registration.port == 0) {
            true => Some(self.sidecar_turn().await?),
            false => None,
        };
        if let Some(Sidecar { registration: one, .. }) = &mut sidecar {
            self.for_service(ask, one, &[]).await?;
            if one.port == 0 {
                one.port = self.sidecar_port(one)?;
            }
        }
        let id = registration_key(&registration);
        let catalog = self.for_service(ask, &registration, &checks).await?;
        let coming = self.registers(ask, "service", (&id.namespace, &id.id));
        catalog
            .register_service(ServiceRequest {
                registration,
                checks,
                replace_checks,
                others: Vec::new(),
                node: (*node).clone(),
                update_node: false,
            })
            .await?;
        came(coming);
        if let Some(sidecar) = sidecar {
            let (checks, registration) = (sidecar.checks()?, sidecar.registration);
            let id = registration_key(&registration);
            let catalog = self.for_service(ask, &registration, &checks).await?;
            let coming = self.registers(ask, "service", (&id.namespace, &id.id));
            catalog
                .register_service(ServiceRequest {
                    registration,
                    checks,
                    replace_checks,
                    others: Vec::new(),
                    node: (*node).clone(),
                    update_node: false,
                })
                .await?;
            came(coming);
        }
        self.settled().await;
        Ok(Reply::empty())
    }

    pub(super) async fn service_deregister(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let key = self.service_key(ask)?;
        match self.for_own_instance(ask, &key).await?.deregister_service(&key).await {
            Err(CatalogError::UnknownService { id }) => Err(self.unknown_service(ask, &id)),
            other => {
                other?;
                self.settled().await;
                Ok(Reply::empty())
            }
        }
    }

    pub(super) async fn service_maintenance(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let key = self.service_key(ask)?;
        let (enable, reason) = maintenance(ask)?;
        let catalog = self.for_own_instance(ask, &key).await?;
        let check = format!("{SERVICE_MAINTENANCE}{}", key.id);
        let coming = self.registers(ask, "check", (&key.namespace, &check));
        match catalog.service_maintenance(&key, enable, reason).await {
            Err(CatalogError::UnknownService { id }) => Err(self.unknown_service(ask, &id)),
            other => {
                other?;
                came(coming.filter(|_| enable));
                self.settled().await;
                Ok(Reply::empty())
            }
        }
    }

    pub(super) async fn agent_maintenance(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let (enable, reason) = maintenance(ask)?;
        let node = &self.own().node;
        ask.who.demand(Verb::Write, Kind::Node, &ask.namespace, &node.node)?;
        self.catalog().register_node(node, false).await?;
        let coming = self.registers(ask, "check", (&ask.namespace, NODE_MAINTENANCE));
        self.catalog().node_maintenance(&ask.namespace, &node.node, enable, reason).await?;
        came(coming.filter(|_| enable));
        self.settled().await;
        Ok(Reply::empty())
    }

    pub(super) async fn check_register(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = body::object(&ask.body)?;
        let mut check = register::check(&body, true)?;
        if check.name.is_empty() {
            return Err(Refusal::bad("Missing check name"));
        }
        if check.id.is_empty() {
            check.id.clone_from(&check.name);
            register::no_life(&check.id)?;
        }
        check.namespace = self.namespace(ask, &body)?;
        check.node.clone_from(&self.own().node.node);
        let (namespace, id) = (check.namespace.clone(), check.id.clone());
        let catalog = self.for_check(ask, &check).await?;
        let coming = self.registers(ask, "check", (&namespace, &id));
        catalog.register_check(&self.own().node, check).await?;
        came(coming);
        self.settled().await;
        Ok(Reply::empty())
    }

    pub(super) async fn check_deregister(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let key = self.check_key(ask)?;
        self.for_known_check(ask, &key).await?.deregister_check(&key).await?;
        self.settled().await;
        Ok(Reply::empty())
    }

    pub(super) async fn check_report(
        &self,
        endpoint: Endpoint,
        ask: &Ask,
    ) -> Result<Reply, Refusal> {
        let status = match endpoint {
            Endpoint::CheckPass => Status::Passing,
            Endpoint::CheckWarn => Status::Warning,
            _ => Status::Critical,
        };
        let note = ask.params.get("note").unwrap_or_default();
        let key = self.check_key(ask)?;
        self.for_known_check(ask, &key).await?.report_ttl(&key, status, note).await?;
        self.settled().await;
        Ok(Reply::empty())
    }

    pub(super) async fn check_update(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = bodies::object(&ask.body, bodies::CHECK_UPDATE)?;
        let fields = Fields::new(&body, "");
        let text = fields.text("Status")?;
        let status =
            Status::parse(&text).ok_or_else(|| Refusal::bad(register::bad_status(&text)))?;
        let output = fields.text("Output")?;
        let key = self.check_key(ask)?;
        self.for_known_check(ask, &key).await?.report_ttl(&key, status, &output).await?;
        self.settled().await;
        Ok(Reply::empty())
    }

    /// Remembers what a registration is to be shown to the server with, before anybody sees it.
    /// The token of one that is refused must not stand for what is there: dropped, it does not.
    fn registers(
        &self,
        ask: &Ask,
        what: &str,
        (namespace, id): (&str, &str),
    ) -> Option<Box<dyn Coming>> {
        let (far, secret) = (self.far()?, ask.secret.as_ref()?);
        Some(far.registers(format!("{what}/{namespace}/{id}"), &secret.0))
    }

    /// Waits until this door's own reads show what the catalog wrote.
    pub(super) async fn settled(&self) {
        tokio::select! {
            () = self.indexes().reached(self.catalog().revision()) => {}
            // Nobody feeds the table any more; the write itself is done.
            () = self.0.tasks.draining() => {}
        }
    }

    /// The namespace of a body, else of the query.
    fn namespace(
        &self,
        ask: &Ask,
        body: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<std::sync::Arc<str>, Refusal> {
        let named = Fields::new(body, "").text("Namespace")?;
        Ok(if named.is_empty() { ask.namespace.clone() } else { named.into() })
    }

    fn service_key(&self, ask: &Ask) -> Result<RegistrationKey, Refusal> {
        if ask.argument.is_empty() {
            return Err(Refusal::bad("Missing service ID"));
        }
        Ok(RegistrationKey {
            namespace: ask.namespace.clone(),
            node: self.own().node.node.clone(),
            id: ask.argument.as_str().into(),
        })
    }

    fn check_key(&self, ask: &Ask) -> Result<CheckKey, Refusal> {
        if ask.argument.is_empty() {
            return Err(Refusal::bad("Missing check ID"));
        }
        Ok(CheckKey {
            namespace: ask.namespace.clone(),
            node: self.own().node.node.clone(),
            id: ask.argument.as_str().into(),
        })
    }

    /// As in Consul an agent that does not know an id says that, whatever the caller may.
    async fn for_own_instance(&self, ask: &Ask, key: &RegistrationKey) -> Result<Handle, Refusal> {
        let known = self.view().world.catalog().registration(key).is_some();
        if !known && !ask.who.may(Verb::Write, Kind::Node, &key.namespace, &key.node) {
            return Err(CatalogError::UnknownService { id: key.id.to_string() }.into());
        }
        self.for_instance(ask, key).await
    }

    /// Unknown here; or known, but the Kubernetes door's.
    fn unknown_service(&self, ask: &Ask, id: &str) -> Refusal {
        match self.view().kubernetes_instance(&ask.namespace, id) {
            Some(service) => CatalogError::Owned {
                namespace: ask.namespace.to_string(),
                service: service.to_string(),
                owner: "Kubernetes".to_owned(),
            }
            .into(),
            None => CatalogError::UnknownService { id: id.to_owned() }.into(),
        }
    }
}

/// What was coming is there.
fn came(coming: Option<Box<dyn Coming>>) {
    if let Some(coming) = coming {
        coming.came();
    }
}

fn maintenance(ask: &Ask) -> Result<(bool, &str), Refusal> {
    let enable = match ask.params.get("enable") {
        None => return Err(Refusal::bad("Missing value for enable")),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        Some(other) => {
            return Err(Refusal::bad(format!("Invalid value for enable: {other:?}")));
        }
    };
    Ok((enable, ask.params.get("reason").unwrap_or_default()))
}
