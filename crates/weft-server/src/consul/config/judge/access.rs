// SPDX-License-Identifier: Apache-2.0
//! Who may call whom, by which proof, and what is shown to others: intentions, JWT providers,
//! exported services.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{META_VALUE_BYTES_MAX, each, http_match, items, upper};
use crate::consul::body::{part, word};

/// An intention's source with what follows from it.
pub fn fill(source: &mut Value, destination: &str) {
    each_method(source);
    let exact = word(source, "Name") != "*";
    let precedence = match (exact, destination != "*") {
        (true, true) => 9,
        (false, true) => 8,
        (true, false) => 6,
        (false, false) => 5,
    };
    let Value::Object(source) = source else { return };
    source.entry("Type").or_insert(json!("consul"));
    source.insert("Precedence".into(), json!(precedence));
}

fn each_method(source: &mut Value) {
    if let Some(Value::Array(permissions)) = source.get_mut("Permissions") {
        for one in permissions {
            each(one.pointer_mut("/HTTP/Methods"), upper);
        }
    }
}

pub fn intentions(entry: &Value) -> Result<(), String> {
    let (destination, sources) = (word(entry, "Name"), items(entry, "Sources"));
    wildcard(destination)?;
    claims(part(entry, "JWT"))?;
    if sources.is_empty() {
        return Err("At least one source is required".into());
    }
    for (i, one) in sources.iter().enumerate() {
        source(one, destination == "*").map_err(|why| format!("Sources[{i}]{why}"))?;
        let of = |one: &Value| {
            [word(one, "Name"), word(one, "Namespace"), word(one, "Peer")].map(str::to_owned)
        };
        if sources.iter().take(i).any(|other| of(other) == of(one)) {
            return Err(format!("Sources[{i}] defines {:?} more than once", word(one, "Name")));
        }
    }
    Ok(())
}

/// What is wrong, as it follows `Sources[0]`.
fn source(one: &Value, wild: bool) -> Result<(), String> {
    let name = word(one, "Name");
    if name.is_empty() {
        return Err(".Name is required".into());
    }
    wildcard(name).map_err(|why| format!(".{why}"))?;
    for (field, other) in
        [("Peer", "Partition"), ("SamenessGroup", "Partition"), ("SamenessGroup", "Peer")]
    {
        if !word(one, field).is_empty() && !word(one, other).is_empty() {
            return Err(format!(".{field}: cannot set {field} and {other} at the same time"));
        }
    }
    if word(one, "Description").len() > META_VALUE_BYTES_MAX {
        return Err(format!(".Description exceeds maximum length {META_VALUE_BYTES_MAX}"));
    }
    for field in ["LegacyMeta", "LegacyCreateTime", "LegacyUpdateTime", "LegacyID"] {
        if !part(one, field).is_null() {
            return Err(format!(".{field} must be omitted"));
        }
    }
    let (action, permissions) = (word(one, "Action"), items(one, "Permissions"));
    if permissions.is_empty() && !is_action(action) {
        return Err(".Action must be set to 'allow' or 'deny'".into());
    }
    if !permissions.is_empty() && !action.is_empty() {
        return Err(".Action must be omitted if Permissions are specified".into());
    }
    if !permissions.is_empty() && wild {
        return Err(
            ".Permissions cannot be specified on intentions with wildcarded destinations".into()
        );
    }
    if word(one, "Type") != "consul" {
        return Err(".Type must be set to 'consul'".into());
    }
    for (j, permission) in permissions.iter().enumerate() {
        let at = format!(".Permissions[{j}]");
        if !is_action(word(permission, "Action")) {
            return Err(format!("{at}.Action must be set to 'allow' or 'deny'"));
        }
        let http = part(permission, "HTTP");
        if http.is_null() {
            return Err(format!("{at}.HTTP is required"));
        }
        if http_match(http, &format!("{at}.HTTP"), ".")? == 0 {
            return Err(format!("{at}.HTTP should not be empty"));
        }
        claims(part(permission, "JWT"))?;
    }
    Ok(())
}

fn is_action(text: &str) -> bool {
    ["allow", "deny"].contains(&text)
}

fn wildcard(name: &str) -> Result<(), String> {
    match name != "*" && name.contains('*') {
        true => Err("Name: wildcard character '*' cannot be used with partial values".into()),
        false => Ok(()),
    }
}

fn claims(jwt: &Value) -> Result<(), String> {
    for provider in items(jwt, "Providers") {
        if word(provider, "Name").is_empty() {
            return Err("JWT provider name is required".into());
        }
        for claim in items(provider, "VerifyClaims") {
            if items(claim, "Path").is_empty() {
                return Err("JWT claim path is required".into());
            }
        }
    }
    Ok(())
}

pub fn provider(entry: &Value) -> Result<(), String> {
    let keys = part(entry, "JSONWebKeySet");
    if keys.is_null() {
        return Err("JSONWebKeySet is required".into());
    }
    let (local, remote) = (part(keys, "Local"), part(keys, "Remote"));
    if local.is_null() == remote.is_null() {
        return Err("must specify exactly one of Local or Remote JSON Web key set".into());
    }
    if !local.is_null() {
        self::local(local)?;
    } else {
        self::remote(remote)?;
    }
    for location in items(entry, "Locations") {
        let ways = ["Header", "QueryParam", "Cookie"].map(|way| part(location, way));
        if ways.iter().filter(|way| !way.is_null()).count() != 1 {
            return Err(
                "must set exactly one of: JWT location header, query param or cookie".into()
            );
        }
        for (way, named) in ways.into_iter().zip(["header", "query param", "cookie"]) {
            if !way.is_null() && word(way, "Name").is_empty() {
                return Err(format!("JWT location {named} name must be specified"));
            }
        }
    }
    let forwarding = part(entry, "Forwarding");
    match !forwarding.is_null() && word(forwarding, "HeaderName").is_empty() {
        true => Err("Header name required for forwarding config".into()),
        false => Ok(()),
    }
}

fn local(keys: &Value) -> Result<(), String> {
    let (own, file) = (word(keys, "JWKS"), word(keys, "Filename"));
    if own.is_empty() == file.is_empty() {
        return Err("must specify exactly one of String or filename for local keyset".into());
    }
    match STANDARD.decode(own) {
        Ok(_) => Ok(()),
        Err(_) => Err("JWKS must be valid base64 encoded string".into()),
    }
}

fn remote(keys: &Value) -> Result<(), String> {
    let uri = word(keys, "URI");
    if uri.is_empty() {
        return Err("Remote JWKS URI is required".into());
    }
    if uri.parse::<http::Uri>().map_or(true, |uri| uri.host().is_none()) {
        return Err(format!("Remote JWKS URI is invalid: invalid URI for request, uri: {uri}"));
    }
    let cluster = part(keys, "JWKSCluster");
    let found = word(cluster, "DiscoveryType");
    if !["", "STRICT_DNS", "STATIC", "LOGICAL_DNS", "EDS", "ORIGINAL_DST"].contains(&found) {
        return Err(format!("unsupported jwks cluster discovery type: {found:?}"));
    }
    let tls = part(cluster, "TLSCertificates");
    let (instance, trusted) = (part(tls, "CaCertificateProviderInstance"), part(tls, "TrustedCA"));
    if !tls.is_null() && instance.is_null() == trusted.is_null() {
        return Err("must specify exactly one of: CaCertificateProviderInstance or TrustedCA for \
                    JKWS' TLSCertificates"
            .into());
    }
    match trusted.as_object().is_some_and(|one| one.len() != 1) {
        true => Err("must specify exactly one of: Filename, EnvironmentVariable, InlineString or \
                     InlineBytes for JWKS' TrustedCA"
            .into()),
        false => Ok(()),
    }
}

pub fn exported(entry: &Value) -> Result<(), String> {
    let name = word(entry, "Name");
    if name != "default" {
        return Err(format!("exported-services Name must be \"default\", not {name:?}"));
    }
    for (i, service) in items(entry, "Services").iter().enumerate() {
        if word(service, "Name").is_empty() {
            return Err(format!("Services[{i}]: service name cannot be empty"));
        }
        let consumers = items(service, "Consumers");
        if consumers.is_empty() {
            return Err(format!("Services[{i}]: must have at least one consumer"));
        }
        for (j, consumer) in consumers.iter().enumerate() {
            let ways = ["Partition", "Peer", "SamenessGroup"];
            let set = ways.iter().filter(|way| !word(consumer, way).is_empty()).count();
            if set != 1 {
                return Err(format!(
                    "Services[{i}].Consumers[{j}]: must define at most one of Peer, Partition, or \
                     SamenessGroup, and at least one"
                ));
            }
            if ways.iter().any(|way| word(consumer, way) == "*") {
                return Err(format!(
                    "Services[{i}].Consumers[{j}]: exporting to all is not supported"
                ));
            }
        }
    }
    Ok(())
}
