// SPDX-License-Identifier: Apache-2.0
//! `/v1/acl/login` and `/v1/acl/logout`: who shows a token of somebody else whom an auth method
//! trusts is given one of ours, with what the method's binding rules say, until it ends.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use uuid::Uuid;
use weft_registry::consul::{Change, RECORDS_MAX, State};

use super::fetch::{Asked, ask};
use super::jwt::{self, Unverified};
use super::methods::{Cluster, Keys, Method, bound_to, selectable};
use super::tokens::{self, hash, put};
use super::{TABLE, links};
use crate::consul::Door;
use crate::consul::body::{Fields, part, word, word_of};
use crate::consul::duration;
use crate::consul::error::Refusal;
use crate::consul::filter::Filter;
use crate::consul::http::Ask;
use crate::consul::register::bodies;
use crate::consul::reply::Reply;

/// Tokens that logins by one method may have made, at a time, and by all methods: each takes two
/// records, and most of the table is for what people make.
const LOGINS_MAX: usize = 2_048;
const ALL_LOGINS_MAX: usize = 4_096;
const _: () = assert!(4 * ALL_LOGINS_MAX < RECORDS_MAX);
/// Those of one identity, of a cluster of one pod: however often it starts.
const SAME_MAX: usize = 256;
/// Where a token says whose login made it: a hash, which nobody is shown.
pub(super) const IDENTITY: &str = "Identity";
/// Tokens that are over and are taken out by one login.
const SWEPT_MAX: usize = 32;
/// What a login may say of itself, bytes.
const DESCRIPTION_BYTES_MAX: usize = 1024;
/// What Kubernetes calls the accounts of its pods, before their namespace and name.
const ACCOUNT: &str = "system:serviceaccount:";
/// Where Kubernetes says which pod a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// What an account is called in Consul, where that is something else.
const SERVICE_NAME: &str = "consul.hashicorp.com/service-name";

impl Door {
    pub(in crate::consul) async fn acl_login(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = bodies::object(&ask.body, bodies::LOGIN)?;
        let fields = Fields::new(&body, "");
        let (name, bearer) = (fields.text("AuthMethod")?, fields.text("BearerToken")?);
        let description = description(&fields.text_map("Meta")?)?;
        let look = || links::record(&self.consul().state(), &format!("method/{name}"));
        let mut known = look();
        if known.is_none() {
            self.consul().caught_up().await?;
            known = look();
        }
        let Some(method) = known else {
            return Err(Refusal::forbidden(format!("ACL not found: auth method {name:?}")));
        };
        if bearer.is_empty() {
            return Err(Refusal::bad("BearerToken is required"));
        }
        let identified = self.identified(&method, &bearer).await;
        let (identity, account) = identified.map_err(|why| {
            // For the operator: who logs in is told the same, and neither has the token.
            tracing::info!(method = name, why, "a login to Consul's API was refused");
            Refusal::forbidden(format!("Permission denied: {why}"))
        })?;
        let now = self.wall_ms();
        let plan = |state: &State| {
            // It may have gone, or say something else, meanwhile.
            if links::record(state, &format!("method/{name}")).as_ref() != Some(&method) {
                return Err(Refusal::forbidden("ACL not found: the auth method has changed"));
            }
            let mut changes = self.swept(state, &name, &account)?;
            let made = (&*description, &*account, now);
            let token = self.bound(state, &method, &identity, made)?;
            changes.extend(put(&token)?);
            Ok((changes, token))
        };
        self.write_token(plan).await
    }

    /// Takes back the token that it is asked with, if a login made it.
    pub(in crate::consul) async fn acl_logout(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let state = self.consul().state();
        let own = links::record(&state, &format!("token/{}", ask.who.accessor));
        if own.is_none_or(|token| word_of(&token, "AuthMethod").is_empty()) {
            let text = "Permission denied: this token was not made by a login";
            return Err(Refusal::forbidden(text));
        }
        let plan = |state: &State| {
            let token = links::record(state, &format!("token/{}", ask.who.accessor));
            Ok::<_, Refusal>((token.map(|token| tokens::gone(&token)).unwrap_or_default(), ()))
        };
        self.consul().change(TABLE, plan).await?;
        Ok(Reply::empty())
    }

    /// Who a bearer is by a method: in the form that its rules look at, and as one word.
    async fn identified(
        &self,
        method: &Map<String, Value>,
        bearer: &str,
    ) -> Result<(Value, String), String> {
        let fields = Fields::new(method, "");
        let config = fields.object("Config").ok().flatten().cloned().unwrap_or_default();
        match word_of(method, "Type") {
            "kubernetes" => {
                let cluster = Cluster::read(&config).map_err(|refusal| refusal.text)?;
                let (account, pod) = self.reviewed(&cluster, bearer).await?;
                let word = hash(format!("{account}\0{pod}"));
                return Ok((account, word));
            }
            "jwt" => {}
            other => return Err(format!("weft does not offer auth methods of type {other:?}")),
        }
        let method = Method::read(&config).map_err(|refusal| refusal.text)?;
        let unverified = Unverified::read(bearer)?;
        let claims = match &method.keys {
            Keys::Given(keys) => unverified.verified(keys, &method.algorithms)?,
            far => {
                let sets = self.acl().sets();
                let provider = sets.provider(far, &unverified.key, &self.0.clock).await?;
                let claims = unverified.verified(&provider.keys, &method.algorithms)?;
                jwt::judge_issuer(&claims, provider.issuer.as_deref())?;
                claims
            }
        };
        jwt::judge(&claims, &method, self.wall_ms())?;
        let identity = jwt::mapped(&claims, &method)?;
        let account = match word_of(&claims, "sub") {
            "" => identity.to_string(),
            subject => format!("{}\0{subject}", word_of(&claims, "iss")),
        };
        Ok((identity, hash(account)))
    }

    /// What a cluster says of a token of one of its pods: of its account, and which pod it is.
    async fn reviewed(&self, cluster: &Cluster, bearer: &str) -> Result<(Value, String), String> {
        let Cluster { host, authority, token } = cluster;
        let question = async |path: String, body: Option<Value>| {
            let url = format!("{host}{path}");
            let body = body.map(|body| body.to_string().into());
            let asked = Asked { url: &url, authority, token: Some(token), body };
            let said = ask(asked, &self.0.clock).await?;
            serde_json::from_slice::<Value>(&said).map_err(|why| format!("{url}: {why}"))
        };
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                            "spec": {"token": bearer}});
        let path = "/apis/authentication.k8s.io/v1/tokenreviews".to_owned();
        let said = question(path, Some(review)).await?;
        let status = part(&said, "status");
        if *part(status, "authenticated") != true {
            let why = word(status, "error");
            return Err(format!("the cluster does not know the token: {why}"));
        }
        let user = part(status, "user");
        let account = word(user, "username").strip_prefix(ACCOUNT);
        let account = account.and_then(|account| account.split_once(':'));
        let (namespace, name) = account.ok_or("the token is of no service account")?;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}");
        let account = question(path, None).await?;
        let renamed = word(part(part(&account, "metadata"), "annotations"), SERVICE_NAME);
        let name = if renamed.is_empty() { name } else { renamed };
        let uid = word(user, "uid");
        let pod = part(part(user, "extra"), POD_NAME).pointer("/0").and_then(Value::as_str);
        let account = json!({"namespace": namespace, "name": name, "uid": uid});
        Ok((json!({"serviceaccount": account}), pod.unwrap_or_default().to_owned()))
    }

    /// Tokens that are over are taken out; of an account's and a method's so many may be there.
    fn swept(&self, state: &State, method: &str, account: &str) -> Result<Vec<Change>, Refusal> {
        let (mut changes, mut same, mut there, mut all) = (Vec::new(), 0_usize, 0_usize, 0_usize);
        for (token, _) in state.records(&format!("{TABLE}/token")) {
            let Some(token) = token.as_object() else { continue };
            let by = word_of(token, "AuthMethod");
            match tokens::is_over(self, state, token) {
                true if changes.len() < 2 * SWEPT_MAX => changes.extend(tokens::gone(token)),
                false if !by.is_empty() => {
                    all += 1;
                    there += usize::from(by == method);
                    same += usize::from(by == method && word_of(token, IDENTITY) == account);
                }
                _ => {}
            }
        }
        match same < SAME_MAX && there < LOGINS_MAX && all < ALL_LOGINS_MAX {
            true => Ok(changes),
            false => Err(Refusal::new(
                http::StatusCode::TOO_MANY_REQUESTS,
                format!(
                    "logins have made {all} tokens that are not over, {there} of them by \
                     {method:?}, {same} of those for this account; log out, or set the method's \
                     MaxTokenTTL"
                ),
            )),
        }
    }

    /// The token of somebody, as the method's rules have it.
    fn bound(
        &self,
        state: &State,
        method: &Map<String, Value>,
        identity: &Value,
        (description, account, now): (&str, &str, u64),
    ) -> Result<Map<String, Value>, Refusal> {
        let name = word_of(method, "Name");
        let mut grants = Map::new();
        for (rule, _) in state.records(&format!("{TABLE}/rule")) {
            let Some(rule) = rule.as_object().filter(|r| word_of(r, "AuthMethod") == name) else {
                continue;
            };
            let selector = word_of(rule, "Selector");
            if selector.is_empty() || Filter::of(selector, selectable(method))?.holds(identity)? {
                self.grant(state, rule, identity, &mut grants)?;
            }
        }
        if grants.is_empty() {
            return Err(Refusal::forbidden(
                "Permission denied: no binding rule of the auth method is for this identity",
            ));
        }
        let accessor = Uuid::new_v4().to_string();
        let mut token = Map::new();
        token.insert("AccessorID".into(), json!(accessor));
        token.insert("SecretID".into(), json!(Uuid::new_v4().to_string()));
        token.insert("Description".into(), json!(description));
        token.insert(IDENTITY.into(), json!(account));
        token.insert("AuthMethod".into(), json!(name));
        token.insert("Local".into(), json!(word_of(method, "TokenLocality") != "global"));
        token.insert("CreateTime".into(), json!(tokens::time(now)));
        let ttl = duration::parse(word_of(method, "MaxTokenTTL"));
        if let Some(ttl) = ttl.and_then(|ttl| u64::try_from(ttl.as_millis()).ok()) {
            token.insert("ExpirationTTL".into(), json!(word_of(method, "MaxTokenTTL")));
            token.insert("ExpirationTime".into(), json!(tokens::time(now.saturating_add(ttl))));
        }
        links::copy(state, &grants, &mut token, true)?;
        let sum = hash(Value::Object(token.clone()).to_string());
        token.insert("Hash".into(), json!(sum));
        Ok(token)
    }

    /// Adds what a rule gives. A role or policy that is not there gives nothing, as in Consul.
    fn grant(
        &self,
        state: &State,
        rule: &Map<String, Value>,
        identity: &Value,
        grants: &mut Map<String, Value>,
    ) -> Result<(), Refusal> {
        let (kind, bind) = (word_of(rule, "BindType"), word_of(rule, "BindName"));
        let variables = rule.get("BindVars").and_then(Value::as_object);
        let (name, filled) = bound_to(kind, bind, variables, identity).map_err(|why| {
            Refusal::forbidden(format!(
                "Permission denied: binding rule {}: {why}",
                word_of(rule, "ID")
            ))
        })?;
        let (field, link) = match kind {
            "service" => ("ServiceIdentities", json!({"ServiceName": name})),
            "node" => {
                let datacenter = &self.own().datacenter;
                ("NodeIdentities", json!({"NodeName": name, "Datacenter": datacenter}))
            }
            "templated-policy" => {
                let mut link = json!({"TemplateName": name});
                if let (false, Some(link)) = (filled.is_empty(), link.as_object_mut()) {
                    link.insert("TemplateVariables".into(), json!({"Name": filled}));
                }
                ("TemplatedPolicies", link)
            }
            "policy" | "role" => match links::by_name(state, kind, &name) {
                Some(id) if kind == "policy" => ("Policies", json!({"ID": id})),
                Some(id) => ("Roles", json!({"ID": id})),
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        let list = grants.entry(field).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut().filter(|list| !list.contains(&link)) {
            list.push(link);
        }
        Ok(())
    }
}

/// As Consul describes what a login made.
fn description(meta: &BTreeMap<String, String>) -> Result<String, Refusal> {
    let text = match meta.is_empty() {
        true => "token created via login".to_owned(),
        false => format!("token created via login: {}", json!(meta)),
    };
    match text.len() <= DESCRIPTION_BYTES_MAX {
        true => Ok(text),
        false => Err(Refusal::bad(format!("Meta is longer than {DESCRIPTION_BYTES_MAX} bytes"))),
    }
}
