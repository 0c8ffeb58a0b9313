// SPDX-License-Identifier: Apache-2.0
//! JSON web tokens (RFC 7515, 7517, 7519), as auth methods of type `jwt` are shown them: read,
//! verified with the method's keys, their claims judged and mapped. Pure; only signatures by
//! asymmetric keys count.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{
    self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value, json};

use super::methods::Method;
use crate::consul::body::{part, word};

/// Largest token that is read, bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Keys of one method.
pub const KEYS_MAX: usize = 64;

/// The names of RFC 7518 and what verifies them. None of them is symmetric, and none is `none`.
const ALGORITHMS: [(&str, &dyn VerificationAlgorithm); 10] = [
    ("RS256", &signature::RSA_PKCS1_2048_8192_SHA256),
    ("RS384", &signature::RSA_PKCS1_2048_8192_SHA384),
    ("RS512", &signature::RSA_PKCS1_2048_8192_SHA512),
    ("ES256", &signature::ECDSA_P256_SHA256_FIXED),
    ("ES384", &signature::ECDSA_P384_SHA384_FIXED),
    ("ES512", &signature::ECDSA_P521_SHA512_FIXED),
    ("PS256", &signature::RSA_PSS_2048_8192_SHA256),
    ("PS384", &signature::RSA_PSS_2048_8192_SHA384),
    ("PS512", &signature::RSA_PSS_2048_8192_SHA512),
    ("EdDSA", &signature::ED25519),
];

/// A public key. One of another kind than a token's algorithm verifies nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// `kid`; empty where it has none.
    pub id: String,
    bytes: Vec<u8>,
}

/// A token whose signature was not looked at yet.
#[derive(Debug)]
pub struct Unverified<'a> {
    /// `kid`; empty where it names none.
    pub key: String,
    algorithm: String,
    signed: &'a str,
    signature: Vec<u8>,
}

/// Whether this is an algorithm that tokens may be signed by.
pub fn is_algorithm(name: &str) -> bool {
    ALGORITHMS.iter().any(|(known, _)| *known == name)
}

// === impl Key ===

impl Key {
    /// A `PUBLIC KEY` in PEM.
    ///
    /// # Errors
    /// When it is none.
    pub fn of_pem(pem: &str) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|why| format!("no public key in PEM: {why:?}"))?;
        Ok(Self { id: String::new(), bytes: der.to_vec() })
    }

    /// The keys of a JWK set that are for signatures; such as are of no known kind are left out.
    ///
    /// # Errors
    /// When it is no set, or has too many.
    pub fn of_set(bytes: &[u8]) -> Result<Vec<Self>, String> {
        let set: Value = serde_json::from_slice(bytes).map_err(|why| why.to_string())?;
        let Some(keys) = set.get("keys").and_then(Value::as_array) else {
            return Err("it has no list \"keys\"".to_owned());
        };
        if keys.len() > KEYS_MAX {
            return Err(format!("it has {} keys; {KEYS_MAX} are read at most", keys.len()));
        }
        let signs = |key: &&Value| matches!(word(key, "use"), "" | "sig");
        Ok(keys.iter().filter(signs).filter_map(Self::of_jwk).collect())
    }

    fn of_jwk(key: &Value) -> Option<Self> {
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(word(key, name)).ok();
        let bytes = match (word(key, "kty"), word(key, "crv")) {
            ("RSA", _) => {
                let parts = RsaPublicKeyComponents { n: bytes("n")?, e: bytes("e")? };
                let der: PublicKeyX509Der = parts.as_der().ok()?;
                der.as_ref().to_vec()
            }
            ("EC", "P-256" | "P-384" | "P-521") => [vec![0x04], bytes("x")?, bytes("y")?].concat(),
            ("OKP", "Ed25519") => bytes("x")?,
            _ => return None,
        };
        Some(Self { id: word(key, "kid").to_owned(), bytes })
    }
}

// === impl Unverified ===

impl<'a> Unverified<'a> {
    /// # Errors
    /// When the text is no signed token, or one whose meaning is not known here.
    pub fn read(token: &'a str) -> Result<Self, String> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(format!("the token is longer than {TOKEN_BYTES_MAX} bytes"));
        }
        let mut parts = token.rsplitn(2, '.');
        let (signature, signed) = (parts.next().unwrap_or_default(), parts.next());
        let signed = signed.filter(|s| s.matches('.').count() == 1);
        let signed = signed.ok_or("the bearer token is no JSON web token of three parts")?;
        let header = object(signed.split('.').next().unwrap_or_default(), "header")?;
        if header.contains_key("crit") {
            return Err("the token's header has \"crit\", which is not known here".to_owned());
        }
        let text = |name: &str| header.get(name).and_then(Value::as_str).unwrap_or_default();
        let signature = URL_SAFE_NO_PAD.decode(signature);
        let signature = signature.map_err(|_| "the token's signature is not base64url")?;
        Ok(Self { key: text("kid").into(), algorithm: text("alg").into(), signed, signature })
    }

    /// The claims of a token that one of the keys has signed.
    ///
    /// # Errors
    /// When none has, or its algorithm is not among those that the method takes.
    pub fn verified(
        &self,
        keys: &[Key],
        algorithms: &[String],
    ) -> Result<Map<String, Value>, String> {
        let named = ALGORITHMS.iter().find(|(name, _)| *name == self.algorithm);
        let taken = algorithms.is_empty() || algorithms.contains(&self.algorithm);
        let Some((_, algorithm)) = named.filter(|_| taken) else {
            return Err(format!("the token is signed by {:?}, which is not taken", self.algorithm));
        };
        let is_signed_by = |key: &&Key| {
            let key = UnparsedPublicKey::new(*algorithm, &key.bytes);
            key.verify(self.signed.as_bytes(), &self.signature).is_ok()
        };
        // A token that names its key is verified by that one, where it is there.
        let named = |key: &&Key| !self.key.is_empty() && key.id == self.key;
        let is_named = keys.iter().any(|key| named(&key));
        let mut candidates = keys.iter().filter(|key| !is_named || named(key));
        if !candidates.any(|key| is_signed_by(&key)) {
            return Err("no key of the auth method has signed the token".to_owned());
        }
        object(self.signed.split('.').nth(1).unwrap_or_default(), "payload")
    }
}

/// Judges when and for whom a token is, as Consul does.
///
/// # Errors
/// When it is over, not yet, from somebody else or for somebody else.
pub fn judge(claims: &Map<String, Value>, method: &Method, now_ms: u64) -> Result<(), String> {
    let now = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    let (start, end) =
        method.span(time(claims, "nbf")?, time(claims, "iat")?, time(claims, "exp")?)?;
    if now >= end.saturating_add(method.skew) {
        return Err("the token has expired (exp)".to_owned());
    }
    if now < start.saturating_sub(method.skew) {
        return Err("the token is not valid yet (nbf)".to_owned());
    }
    let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    if !method.issuer.is_empty() && issuer != method.issuer {
        return Err("the token is of another issuer than BoundIssuer (iss)".to_owned());
    }
    let audiences = texts(claims.get("aud").unwrap_or(&Value::Null));
    let audiences = audiences.ok_or("the token's audience is neither text nor a list (aud)")?;
    let is_for = match method.audiences.is_empty() {
        // Who is for somebody in particular is not for whoever forgot to say so.
        true => audiences.is_empty(),
        false => audiences.iter().any(|audience| method.audiences.contains(audience)),
    };
    match is_for {
        true => Ok(()),
        false => Err("the token is for none of BoundAudiences (aud)".to_owned()),
    }
}

/// Whether a token is of the provider whose keys signed it, word by word: many have the same keys.
///
/// # Errors
/// When it is another's.
pub fn judge_issuer(claims: &Map<String, Value>, provider: Option<&str>) -> Result<(), String> {
    let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    match provider {
        Some(provider) if provider != issuer => {
            Err("the token is of another issuer than OIDCDiscoveryURL's (iss)".to_owned())
        }
        _ => Ok(()),
    }
}

/// What of the claims binding rules may look at: `value.NAME` and `list.NAME`.
///
/// # Errors
/// When a mapped claim is not of a form that has a text.
pub fn mapped(claims: &Map<String, Value>, method: &Method) -> Result<Value, String> {
    let (mut values, mut lists) = (Map::new(), Map::new());
    let wrong = |name: &str| format!("the claim {name:?} is no text, number or flag, nor a list");
    for (claim, name) in &method.values {
        if let Some(found) = at(claims, claim) {
            values.insert(name.clone(), json!(scalar(found).ok_or_else(|| wrong(claim))?));
        }
    }
    for (claim, name) in &method.lists {
        if let Some(found) = at(claims, claim) {
            lists.insert(name.clone(), json!(texts(found).ok_or_else(|| wrong(claim))?));
        }
    }
    Ok(json!({"value": values, "list": lists}))
}

// === helpers ===

fn object(part: &str, what: &str) -> Result<Map<String, Value>, String> {
    let bytes = URL_SAFE_NO_PAD.decode(part);
    let bytes = bytes.map_err(|_| format!("the token's {what} is not base64url"))?;
    serde_json::from_slice(&bytes).map_err(|_| format!("the token's {what} is no JSON object"))
}

/// Seconds since 1970, whole; nothing where it is not said.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<i64>, String> {
    let Some(value) = claims.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    let whole = value.as_i64().or_else(|| {
        let text = format!("{:.0}", value.as_f64()?.trunc());
        text.parse().ok()
    });
    whole.map(Some).ok_or_else(|| format!("the claim {name:?} is no time"))
}

/// A claim by its name, or by a JSON pointer.
fn at<'a>(claims: &'a Map<String, Value>, claim: &str) -> Option<&'a Value> {
    let found = match claim.strip_prefix('/') {
        None => claims.get(claim),
        Some(path) => {
            let mut names = path.split('/').map(|n| n.replace("~1", "/").replace("~0", "~"));
            let first = claims.get(&names.next()?)?;
            names.try_fold(first, |value, name| match value {
                Value::Array(items) => items.get(name.parse::<usize>().ok()?),
                other => Some(part(other, &name)),
            })
        }
    };
    found.filter(|value| !value.is_null())
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// A list of texts, or one of them by itself.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(items) => items.iter().map(scalar).collect(),
        one => scalar(one).map(|one| vec![one]),
    }
}
