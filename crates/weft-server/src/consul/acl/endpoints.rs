// SPDX-License-Identifier: Apache-2.0
//! `/v1/acl/{bootstrap,templated-policy*}`, `/v1/agent/token/*` and what the UI asks
//! about rights.

use http::StatusCode;
use serde_json::{Map, Value, json};
use uuid::Uuid;
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{Change, State};

use super::expanded::synthetic;
use super::tokens::{hash, put};
use super::{MANAGEMENT, links, templates};
use crate::consul::Door;
use crate::consul::body::{self, Fields};
use crate::consul::error::Refusal;
use crate::consul::http::Ask;
use crate::consul::register::bodies;
use crate::consul::reply::Reply;

/// The kinds of tokens that an agent has.
const AGENT_TOKENS: [&str; 12] = [
    "default",
    "agent",
    "agent_recovery",
    "agent_master",
    "replication",
    "config_file_service_registration",
    "dns",
    // Their names before Consul 1.4, which its clients fall back to.
    "dns_token",
    "acl_token",
    "acl_agent_token",
    "acl_agent_master_token",
    "acl_replication_token",
];

impl Door {
    /// # Errors
    /// 401 while access lists are off.
    pub(in crate::consul) fn need_acl(&self) -> Result<(), Refusal> {
        match self.acl().is_on() {
            true => Ok(()),
            false => Err(disabled()),
        }
    }

    /// The first token that may do everything; once.
    pub(in crate::consul) async fn acl_bootstrap(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = bodies::maybe(&ask.body, bodies::BOOTSTRAP)?;
        let wanted = Fields::new(&body, "").text("BootstrapSecret")?;
        if !wanted.is_empty() && Uuid::parse_str(&wanted).is_err() {
            return Err(Refusal::bad("BootstrapSecret is not a valid UUID"));
        }
        let done = || {
            Refusal::forbidden(
                "Permission denied: ACL bootstrap no longer allowed: a management token was made",
            )
        };
        if self.acl().initial_management().is_some() {
            return Err(done());
        }
        let now = i64::try_from(self.wall_ms()).unwrap_or(i64::MAX);
        let time = jiff::Timestamp::from_millisecond(now).map(|t| t.to_string());
        let time = time.unwrap_or_default();
        let secret = if wanted.is_empty() { Uuid::new_v4().to_string() } else { wanted };
        let accessor = Uuid::new_v4().to_string();
        let plan = |state: &State| {
            if links::record(state, "bootstrap").is_some() {
                return Err(done());
            }
            let mut token = Map::new();
            token.insert("AccessorID".into(), json!(accessor));
            token.insert("SecretID".into(), json!(secret));
            token.insert("Description".into(), json!("Bootstrap Token (Global Management)"));
            let policies = json!([{"ID": MANAGEMENT, "Name": "global-management"}]);
            token.insert("Policies".into(), policies);
            token.insert("Local".into(), json!(false));
            token.insert("CreateTime".into(), json!(time));
            token.insert("Hash".into(), json!(hash(&accessor)));
            let mut changes = put(&token)?;
            let mark = json!({"AccessorID": accessor});
            changes.push(Change::Put("bootstrap".into(), mark));
            Ok((changes, token))
        };
        self.write_token(plan).await
    }

    pub(in crate::consul) fn acl_replication(&self) -> Result<Reply, Refusal> {
        Ok(Reply::json(json!({
            "Enabled": false,
            "Running": false,
            "SourceDatacenter": "",
            "ReplicationType": "",
            "ReplicatedIndex": 0,
            "ReplicatedTokenIndex": 0,
            "LastSuccess": "0001-01-01T00:00:00Z",
            "LastError": "0001-01-01T00:00:00Z",
            "LastErrorMessage": "",
        })))
    }

    pub(in crate::consul) fn acl_templates(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Read)?;
        let all = templates::TEMPLATES.iter().map(|t| (t.name.to_owned(), t.shape()));
        Ok(Reply::json(Value::Object(all.collect())))
    }

    pub(in crate::consul) fn acl_template(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Read)?;
        match templates::find(&ask.argument) {
            Some(template) => Ok(Reply::json(template.shape())),
            None => Err(unknown_template(&ask.argument)),
        }
    }

    pub(in crate::consul) fn acl_preview(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Read)?;
        let template =
            templates::find(&ask.argument).ok_or_else(|| unknown_template(&ask.argument))?;
        let body = bodies::maybe(&ask.body, bodies::PREVIEW)?;
        let description = format!("synthetic policy of templated policy {}", template.name);
        let rules = template.rules(&Fields::new(&body, "").text("Name")?)?;
        Ok(Reply::json(synthetic(&rules, &description)))
    }

    /// What the agent itself uses; only the default says something here, of requests without a
    /// token. Kept in memory, as Consul does unless told to persist.
    pub(in crate::consul) fn agent_token(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if !self.has_acl(&ask.who) {
            return Err(disabled());
        }
        ask.who.demand(Verb::Write, Kind::Agent, &ask.namespace, &self.own().node.node)?;
        let body = bodies::object(&ask.body, bodies::AGENT_TOKEN)?;
        let secret = Fields::new(&body, "").text("Token")?;
        if !AGENT_TOKENS.contains(&ask.argument.as_str()) {
            return Err(Refusal::not_found(format!("Token {:?} is unknown", ask.argument)));
        }
        if matches!(ask.argument.as_str(), "default" | "acl_token") {
            if let Some(far) = self.far() {
                far.defaults(&secret);
            }
            self.acl().set_default(secret.into());
        } else if matches!(ask.argument.as_str(), "dns" | "dns_token") {
            if self.far().is_some() {
                let text =
                    "what a machine's DNS shows its server says: set the token for DNS there";
                return Err(Refusal::not_offered(text));
            }
            self.acl().set_dns(secret.into());
        }
        Ok(Reply::empty())
    }

    /// Which of several things the caller may do.
    pub(in crate::consul) fn acl_authorize(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let asked = body::list(&ask.body)?;
        if asked.len() > 64 {
            return Err(Refusal::bad("Refusing to process more than 64 authorizations at once"));
        }
        let mut out = Vec::with_capacity(asked.len());
        for one in asked {
            let Value::Object(mut one) = one else {
                return Err(Refusal::bad("Request decode failed: expected a list of objects"));
            };
            let fields = Fields::new(&one, "");
            let (resource, access) = (fields.text("Resource")?, fields.text("Access")?);
            let name = fields.text("Segment")?;
            let kind = Kind::parse(&resource)
                .ok_or_else(|| Refusal::bad(format!("Invalid resource {resource:?}")))?;
            let verb = match access.as_str() {
                "read" => Verb::Read,
                "list" => Verb::List,
                "write" => Verb::Write,
                other => return Err(Refusal::bad(format!("Invalid access level {other:?}"))),
            };
            let may = ask.who.may(verb, kind, &ask.namespace, &name);
            one.insert("Allow".into(), json!(may));
            out.push(Value::Object(one));
        }
        Ok(Reply::json(Value::Array(out)))
    }
}

// === helpers ===

fn disabled() -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, "ACL support disabled")
}

fn unknown_template(name: &str) -> Refusal {
    Refusal::bad(format!("Invalid templated policy Name: {name}"))
}
