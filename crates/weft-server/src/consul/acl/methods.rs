// SPDX-License-Identifier: Apache-2.0
//! Auth methods and binding rules as they are written: judged as Consul does, and read back for
//! who logs in. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};
use weft_registry::consul::State;

use super::jwt::{KEYS_MAX, Key, is_algorithm};
use super::{links, templates};
use crate::consul::body::Fields;
use crate::consul::duration;
use crate::consul::error::Refusal;
use crate::consul::filter::{Filter, typed};

/// How long a token may live, as for tokens that people make.
pub const TTL_MIN: Duration = Duration::from_secs(60);
pub const TTL_MAX: Duration = Duration::from_hours(24);
/// Consul's leeways, seconds: of a token that does not say when it begins or ends, and of clocks.
const SPAN_LEEWAY: i64 = 150;
const SKEW_LEEWAY: i64 = 60;

/// What rules may look at, by the type of the method.
const JWT_FIELDS: typed::Fields = &[
    ("value", typed::Type::Map(&typed::Type::Text)),
    ("list", typed::Type::Map(&typed::Type::Texts)),
];
const ACCOUNT_FIELDS: typed::Fields = &[(
    "serviceaccount",
    typed::Type::Record(&[
        ("namespace", typed::Type::Text),
        ("name", typed::Type::Text),
        ("uid", typed::Type::Text),
    ]),
)];

/// Where a method's keys come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Keys {
    Given(Vec<Key>),
    /// The address of a JWK set, and whose certificate its server shows.
    Set(String, String),
    /// The address of an OpenID provider, and whose certificate it shows.
    Discovery(String, String),
}

/// How a method of type `jwt` judges tokens.
#[derive(Clone, Debug)]
pub struct Method {
    pub keys: Keys,
    pub algorithms: Vec<String>,
    pub issuer: String,
    pub audiences: Vec<String>,
    /// Claims and what rules call them.
    pub values: BTreeMap<String, String>,
    pub lists: BTreeMap<String, String>,
    /// How far clocks may be apart, seconds.
    pub skew: i64,
    end_leeway: i64,
    start_leeway: i64,
}

/// How a method of type `kubernetes` asks about tokens.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub host: String,
    pub authority: String,
    /// What the questions are shown with.
    pub token: String,
}

// === impl Method ===

impl Method {
    /// # Errors
    /// When the configuration is none.
    pub fn read(config: &Map<String, Value>) -> Result<Self, Refusal> {
        let fields = Fields::new(config, "Config.");
        let pems = fields.list("JWTValidationPubKeys")?;
        let (set, discovery) = (fields.text("JWKSURL")?, fields.text("OIDCDiscoveryURL")?);
        let count = [!pems.is_empty(), !set.is_empty(), !discovery.is_empty()];
        if count.into_iter().filter(|is_set| *is_set).count() != 1 {
            return Err(invalid(
                "exactly one of 'JWTValidationPubKeys', 'JWKSURL', or 'OIDCDiscoveryURL' must be \
                 set for type \"jwt\"",
            ));
        }
        let keys = match (set.is_empty(), discovery.is_empty()) {
            (false, _) => Keys::Set(url("JWKSURL", set)?, fields.text("JWKSCACert")?),
            (_, false) => {
                let url = url("OIDCDiscoveryURL", discovery)?;
                Keys::Discovery(url, fields.text("OIDCDiscoveryCACert")?)
            }
            _ => Keys::Given(given(&pems)?),
        };
        let mut algorithms = fields.list("JWTSupportedAlgs")?;
        if let Some(other) = algorithms.iter().find(|name| !is_algorithm(name)) {
            return Err(invalid(&format!(
                "Config.JWTSupportedAlgs: unsupported algorithm {other:?}"
            )));
        }
        if algorithms.is_empty() && !matches!(keys, Keys::Given(_)) {
            algorithms.push("RS256".to_owned());
        }
        let names = |name: &str| fields.text_map(name);
        Ok(Self {
            keys,
            algorithms,
            issuer: fields.text("BoundIssuer")?,
            audiences: fields.list("BoundAudiences")?,
            values: names("ClaimMappings")?,
            lists: names("ListClaimMappings")?,
            skew: leeway(&fields, "ClockSkewLeeway", SKEW_LEEWAY)?,
            end_leeway: leeway(&fields, "ExpirationLeeway", SPAN_LEEWAY)?,
            start_leeway: leeway(&fields, "NotBeforeLeeway", SPAN_LEEWAY)?,
        })
    }

    /// From when to when a token is good that says so much, seconds since 1970.
    ///
    /// # Errors
    /// When it says nothing of time.
    pub fn span(
        &self,
        start: Option<i64>,
        issued: Option<i64>,
        end: Option<i64>,
    ) -> Result<(i64, i64), String> {
        match (start.or(issued), end) {
            (None, None) => Err("the token says neither iat, nbf nor exp".to_owned()),
            (None, Some(end)) => Ok((end.saturating_sub(self.start_leeway), end)),
            (Some(start), Some(end)) => Ok((start, end)),
            (Some(start), None) => {
                let last = start.max(issued.unwrap_or(start));
                Ok((start, last.saturating_add(self.end_leeway)))
            }
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// # Errors
    /// When the configuration is none.
    pub fn read(config: &Map<String, Value>) -> Result<Self, Refusal> {
        let fields = Fields::new(config, "Config.");
        let needed = |name: &str| match fields.text(name)? {
            text if text.is_empty() => Err(invalid(&format!("Config.{name} is required"))),
            text => Ok(text),
        };
        let host = url("Host", needed("Host")?)?.trim_end_matches('/').to_owned();
        let authority = needed("CACert")?;
        Ok(Self { host, authority, token: needed("ServiceAccountJWT")? })
    }
}

/// What a body says of a method, as it is kept.
///
/// # Errors
/// With Consul's sentence, when it is no method that could let anybody in.
pub fn method(
    fields: &Fields,
    old: Option<&Map<String, Value>>,
    out: &mut Map<String, Value>,
) -> Result<(), Refusal> {
    let kind = fields.text("Type")?;
    let known = old.and_then(|old| old.get("Type")?.as_str());
    let kind = if kind.is_empty() { known.unwrap_or_default().to_owned() } else { kind };
    if known.is_some_and(|known| known != kind) {
        return Err(Refusal::bad("Changing an auth method's type is not permitted"));
    }
    let config = fields.object("Config")?.cloned().unwrap_or_default();
    match kind.as_str() {
        "jwt" => drop(Method::read(&config)?),
        "kubernetes" => drop(Cluster::read(&config)?),
        "oidc" | "aws-iam" => {
            return Err(Refusal::not_offered(format!(
                "weft does not offer auth methods of type {kind:?}: log in by a token of a \
                 provider (\"jwt\", with OIDCDiscoveryURL) or of a cluster (\"kubernetes\")"
            )));
        }
        other => {
            return Err(invalid(&format!("Type should be one of [jwt kubernetes]: {other:?}")));
        }
    }
    out.insert("Type".into(), json!(kind));
    for name in ["DisplayName", "TokenNameFormat"] {
        let text = fields.text(name)?;
        if !text.is_empty() {
            out.insert(name.into(), json!(text));
        }
    }
    let locality = fields.text("TokenLocality")?;
    if !["", "local", "global"].contains(&locality.as_str()) {
        return Err(invalid("TokenLocality should be one of 'local' or 'global'"));
    }
    if !locality.is_empty() {
        out.insert("TokenLocality".into(), json!(locality));
    }
    let ttl = Duration::from_millis(fields.duration_ms("MaxTokenTTL")?);
    if !ttl.is_zero() {
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(invalid("MaxTokenTTL is from 1m0s to 24h0m0s"));
        }
        out.insert("MaxTokenTTL".into(), json!(duration::exactly(ttl)));
    }
    out.insert("Config".into(), Value::Object(config));
    Ok(())
}

/// What a body says of a binding rule, as it is kept.
///
/// # Errors
/// With Consul's sentence.
pub fn binding(
    state: &State,
    fields: &Fields,
    out: &mut Map<String, Value>,
) -> Result<(), Refusal> {
    let name = fields.text("AuthMethod")?;
    let Some(method) = links::record(state, &format!("method/{name}")) else {
        return Err(Refusal::bad(format!("Invalid Binding Rule: no auth method {name:?}")));
    };
    let kind = fields.text("BindType")?;
    if !["service", "role", "node", "policy", "templated-policy"].contains(&kind.as_str()) {
        return Err(Refusal::bad(format!("Invalid Binding Rule: no BindType {kind:?}")));
    }
    let bind = fields.text("BindName")?;
    let variables = fields.object("BindVars")?;
    if variables.is_some() && kind != "templated-policy" {
        let text = "Invalid Binding Rule: BindVars cannot be set when bind type is not \
                    templated-policy";
        return Err(Refusal::bad(text));
    }
    let known = example(&method)?;
    let wrong = |why: String| {
        Refusal::bad(format!("Invalid Binding Rule: invalid BindName or BindVars: {why}"))
    };
    let (bound, filled) = bound_to(&kind, &bind, variables, &known).map_err(wrong)?;
    if kind == "templated-policy" {
        let Some(template) = templates::find(&bound) else {
            return Err(wrong(format!("no templated policy {bound:?}")));
        };
        template.rules(&filled)?;
    }
    out.insert("AuthMethod".into(), json!(name));
    out.insert("BindType".into(), json!(kind));
    out.insert("BindName".into(), json!(bind));
    let selector = fields.text("Selector")?;
    if !selector.is_empty() {
        Filter::of(&selector, selectable(&method))?;
    }
    out.insert("Selector".into(), json!(selector));
    if let Some(variables) = variables {
        out.insert("BindVars".into(), Value::Object(variables.clone()));
    }
    Ok(())
}

/// What selectors may name, of the rules of a method.
pub fn selectable(method: &Map<String, Value>) -> typed::Fields {
    match method.get("Type").is_some_and(|kind| kind == "kubernetes") {
        true => ACCOUNT_FIELDS,
        false => JWT_FIELDS,
    }
}

/// The name, and a template's variable, that a rule leads to for who has these fields.
///
/// # Errors
/// When it names what they do not have, or leads to what is no name.
pub fn bound_to(
    kind: &str,
    bind: &str,
    variables: Option<&Map<String, Value>>,
    identity: &Value,
) -> Result<(String, String), String> {
    let name = filled(bind, identity)?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fine = match kind {
        "service" | "node" => {
            name.len() <= 256
                && name.starts_with(is_inner)
                && name.ends_with(is_inner)
                && name.chars().all(|c| is_inner(c) || "-_".contains(c))
        }
        "templated-policy" => templates::find(&name).is_some(),
        _ => (1..=256).contains(&name.len()) && name.chars().all(is_word),
    };
    if !fine {
        return Err(format!("{name:?} is no name for a {kind}"));
    }
    let given = variables.map(|map| Fields::new(map, "BindVars.").text("Name"));
    let given = given.transpose().map_err(|refusal| refusal.text)?;
    Ok((name, filled(&given.unwrap_or_default(), identity)?))
}

// === helpers ===

fn invalid(why: &str) -> Refusal {
    Refusal::bad(format!("Invalid Auth Method: {why}"))
}

/// An address that is asked over TLS, unless it is this machine itself.
pub fn is_safe(text: &str) -> bool {
    let parsed: Option<http::Uri> = text.parse().ok();
    let host = parsed.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.host()?)));
    let here = ["127.0.0.1", "localhost", "[::1]"];
    host.is_some_and(|(scheme, host)| scheme == "https" || scheme == "http" && here.contains(&host))
}

fn url(name: &str, text: String) -> Result<String, Refusal> {
    match is_safe(&text) {
        true => Ok(text),
        false => Err(invalid(&format!(
            "Config.{name}: {text:?} is no https address (http is for this machine only)"
        ))),
    }
}

fn given(pems: &[String]) -> Result<Vec<Key>, Refusal> {
    if pems.len() > KEYS_MAX {
        return Err(invalid(&format!("Config.JWTValidationPubKeys: at most {KEYS_MAX}")));
    }
    let read = |(at, pem): (usize, &String)| {
        let wrong = |why| invalid(&format!("Config.JWTValidationPubKeys[{at}]: {why}"));
        Key::of_pem(pem).map_err(wrong)
    };
    pems.iter().enumerate().map(read).collect()
}

/// Seconds; what is not said or 0 is the default, and what is below 0 is none.
fn leeway(fields: &Fields, name: &str, or: i64) -> Result<i64, Refusal> {
    let is_negative = match fields.value(name) {
        Some(Value::String(text)) => text.starts_with('-'),
        Some(Value::Number(number)) => number.as_i64().is_some_and(|n| n < 0),
        _ => false,
    };
    if is_negative {
        return Ok(0);
    }
    let secs = fields.duration_ms(name)? / 1000;
    Ok(if secs == 0 { or } else { i64::try_from(secs).unwrap_or(or) })
}

/// Somebody who has everything that rules of this method may name.
fn example(method: &Map<String, Value>) -> Result<Value, Refusal> {
    if method.get("Type").is_some_and(|kind| kind == "kubernetes") {
        return Ok(json!({"serviceaccount": {"namespace": "x", "name": "x", "uid": "x"}}));
    }
    let config = Fields::new(method, "").object("Config")?.cloned().unwrap_or_default();
    let values = Method::read(&config)?.values;
    let values: Map<String, Value> = values.into_values().map(|name| (name, json!("x"))).collect();
    Ok(json!({"value": values}))
}

/// `dev-${value.team}`: each `${…}` is what it names, in lower case as in Consul; `$${` is `${`.
fn filled(template: &str, identity: &Value) -> Result<String, String> {
    let (mut out, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            out.extend([before, "${"]);
            rest = after;
            continue;
        }
        out.push_str(before);
        let (name, tail) = after.split_once('}').ok_or("a \"}\" is missing after \"${\"")?;
        let name = name.trim();
        let found = name.split_once('.').and_then(|(of, name)| identity.get(of)?.get(name));
        let found = found.and_then(Value::as_str);
        let found = found.ok_or_else(|| format!("unknown variable accessed: {name}"))?;
        out.push_str(&found.to_lowercase());
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_nothing_else() {
        let identity = json!({"value": {"team": "Ops", "a b": "x"}, "list": {"l": ["x"]}});
        for (template, expect) in [
            ("web", Ok("web")),
            ("dev-${value.team}-x", Ok("dev-ops-x")),
            ("${ value.team }${value.team}", Ok("opsops")),
            ("$${value.team}", Ok("${value.team}")),
            ("${value.none}", Err("unknown variable accessed: value.none")),
            ("${list.l}", Err("unknown variable accessed: list.l")),
            ("${value.team", Err("a \"}\" is missing after \"${\"")),
        ] {
            let got = filled(template, &identity);
            assert_eq!(got.as_deref().map_err(String::as_str), expect, "{template}");
        }
    }

    #[test]
    fn what_a_claim_says_is_no_name_of_anything_it_should_not_be() {
        for (kind, claim, is_one) in [
            ("service", "web", true),
            ("service", "WEB", true),
            ("service", "web\" { policy = \"write\" } acl = \"write\" #", false),
            ("service", "", false),
            ("node", "-n1", false),
            ("role", "admins", true),
            ("role", "a/b", false),
            ("policy", "a b", false),
            ("templated-policy", "builtin/dns", true),
            ("templated-policy", "builtin/none", false),
        ] {
            let identity = json!({"value": {"name": claim}});
            let bound = bound_to(kind, "${value.name}", None, &identity);
            assert_eq!(bound.is_ok(), is_one, "{kind} {claim:?}: {bound:?}");
        }
    }
}
