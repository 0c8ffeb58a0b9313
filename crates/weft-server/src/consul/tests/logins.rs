// SPDX-License-Identifier: Apache-2.0
//! `acl/login` and `acl/logout`: tokens of others, whom they are taken from, and what they give.

use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::records::{ROOT, guarded};
use super::*;

/// Somebody who signs tokens.
pub(super) struct Issuer(EcdsaKeyPair);

impl Issuer {
    pub(super) fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn pem(&self) -> String {
        let der: PublicKeyX509Der = self.0.public_key().as_der().unwrap();
        let text = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    fn jwk(&self, id: &str) -> Value {
        let point = self.0.public_key().as_ref();
        let of = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        let (x, y) = (of(1..33), of(33..65));
        json!({"kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "x": x, "y": y})
    }

    fn token(&self, header: Value, claims: Value) -> String {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Rig {
    fn now(&self) -> u64 {
        self.door.wall_ms() / 1000
    }

    async fn root(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.as_token(ROOT, method, path, &body).await
    }

    async fn made(&self, path: &str, body: Value) -> Value {
        let answer = self.root("PUT", path, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.json()
    }

    async fn method(&self, config: Value) -> Value {
        let body = json!({"Name": "m", "Type": "jwt", "MaxTokenTTL": "5m", "Config": config});
        self.made("/v1/acl/auth-method", body).await
    }

    async fn rule(&self, kind: &str, name: &str, selector: &str) -> Value {
        let body = json!({"AuthMethod": "m", "BindType": kind, "BindName": name,
                          "Selector": selector});
        self.made("/v1/acl/binding-rule", body).await
    }

    async fn login(&self, bearer: &str) -> Answer {
        let body = json!({"AuthMethod": "m", "BearerToken": bearer, "Meta": {"pod": "p1"}});
        self.ask("POST", "/v1/acl/login", &body.to_string()).await
    }
}

pub(super) fn config(issuer: &Issuer) -> Value {
    json!({
        "JWTValidationPubKeys": [issuer.pem()], "BoundIssuer": "https://issuer",
        "BoundAudiences": ["weft"],
        "ClaimMappings": {"sub": "name", "/org/team": "team"},
        "ListClaimMappings": {"groups": "groups"},
    })
}

fn claims(rig: &Rig) -> Value {
    json!({
        "iss": "https://issuer", "aud": ["other", "weft"], "sub": "Web", "org": {"team": "ops"},
        "groups": ["a", "b"], "iat": rig.now(), "exp": rig.now() + 600,
    })
}

fn es256() -> Value {
    json!({"alg": "ES256", "typ": "JWT"})
}

#[tokio::test]
async fn a_login_gives_what_the_rules_say_until_it_is_given_back() {
    let rig = guarded(false).await;
    let issuer = Issuer::new();
    let method = rig.method(config(&issuer)).await;
    assert_eq!(method["MaxTokenTTL"], "5m0s");
    let read = r#"key_prefix "" { policy = "read" }"#;
    rig.made("/v1/acl/policy", json!({"Name": "reads", "Rules": read})).await;
    rig.made("/v1/acl/role", json!({"Name": "ops-role", "Policies": [{"Name": "reads"}]})).await;
    rig.rule("service", "${value.name}", r#"value.team == ops and "a" in list.groups"#).await;
    rig.rule("role", "${value.team}-role", "").await;
    rig.rule("role", "absent", "").await;
    rig.rule("node", "n1", "value.team == dev").await;

    let made = rig.login(&issuer.token(es256(), claims(&rig))).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let token = made.json();
    assert_eq!(token["ServiceIdentities"], json!([{"ServiceName": "web"}]));
    assert_eq!(token["Roles"][0]["Name"], "ops-role");
    assert_eq!(token["Roles"].as_array().unwrap().len(), 1);
    assert_eq!(token.get("NodeIdentities"), None);
    assert_eq!(token["Description"], r#"token created via login: {"pod":"p1"}"#);
    assert_eq!((&token["AuthMethod"], &token["Local"]), (&json!("m"), &json!(true)));
    let ends: jiff::Timestamp = token["ExpirationTime"].as_str().unwrap().parse().unwrap();
    let left = u64::try_from(ends.as_millisecond()).unwrap() - rig.door.wall_ms();
    assert!((200_000..=300_000).contains(&left), "{left}");

    let secret = token["SecretID"].as_str().unwrap();
    let register = |name: &str| json!({"Name": name}).to_string();
    for (name, status) in [("web", 200), ("db", 403)] {
        let path = "/v1/agent/service/register";
        assert_eq!(rig.as_token(secret, "PUT", path, &register(name)).await.status, status);
    }
    assert_eq!(rig.as_token(secret, "GET", "/v1/kv/x", "").await.status, 404);
    let own = rig.as_token(secret, "GET", "/v1/acl/token/self", "").await;
    assert_eq!(own.json()["AccessorID"], token["AccessorID"]);

    assert_eq!(rig.as_token(secret, "POST", "/v1/acl/logout", "").await.status, 200);
    let after = rig.as_token(secret, "GET", "/v1/acl/token/self", "").await;
    assert_eq!((after.status, after.text.as_str()), (403, "ACL not found"));
    assert_eq!(rig.as_token(ROOT, "POST", "/v1/acl/logout", "").await.status, 403);
}

#[tokio::test]
async fn who_is_not_whom_the_method_trusts_does_not_come_in() {
    let rig = guarded(false).await;
    let (issuer, other) = (Issuer::new(), Issuer::new());
    rig.method(config(&issuer)).await;
    rig.rule("service", "${value.name}", "").await;
    let with = |name: &str, value: Value| {
        let mut claims = claims(&rig);
        claims[name] = value;
        issuer.token(es256(), claims)
    };
    let without = |names: &[&str]| {
        let mut claims = claims(&rig);
        names.iter().for_each(|name| drop(claims.as_object_mut().unwrap().remove(*name)));
        issuer.token(es256(), claims)
    };
    let header = |alg: &str| issuer.token(json!({"alg": alg}), claims(&rig));
    let signed = with("sub", json!("web"));
    let (head, signature) = signed.rsplit_once('.').unwrap();
    let forged = with("sub", json!("admin"));
    let forged = format!("{}.{signature}", forged.rsplit_once('.').unwrap().0);
    let now = rig.now();
    for (bearer, why) in [
        (other.token(es256(), claims(&rig)), "no key of the auth method has signed"),
        (forged, "no key of the auth method has signed"),
        (format!("{head}."), "no key of the auth method has signed"),
        (header("none"), "which is not taken"),
        (header("HS256"), "which is not taken"),
        (header("RS256"), "no key of the auth method has signed"),
        (issuer.token(json!({"alg": "ES256", "crit": ["x"]}), claims(&rig)), "\"crit\""),
        (with("exp", json!(now - 61)), "has expired"),
        (with("nbf", json!(now + 600)), "not valid yet"),
        (with("iss", json!("https://issuer.example")), "another issuer"),
        (with("aud", json!("else")), "for none of BoundAudiences"),
        (without(&["aud"]), "for none of BoundAudiences"),
        (without(&["iat", "exp"]), "neither iat, nbf nor exp"),
        (with("sub", json!({"a": 1})), "\"sub\" is no text"),
        (with("sub", json!("a\" { policy = \"write\" }")), "is no name for a service"),
        (without(&["sub"]), "unknown variable accessed: value.name"),
        ("x".to_owned(), "no JSON web token"),
        ("a.b.c.d".to_owned(), "no JSON web token"),
        ("x".repeat(20_000), "longer than"),
    ] {
        let answer = rig.login(&bearer).await;
        assert_eq!(answer.status, 403, "{bearer}: {}", answer.text);
        assert!(answer.text.contains(why), "{why}: {}", answer.text);
    }
    assert_eq!(rig.login(&signed).await.status, 200);
    let just_over = with("exp", json!(rig.now() - 5));
    assert_eq!(rig.login(&just_over).await.status, 200, "clocks differ");
    let tokens = rig.root("GET", "/v1/acl/tokens?authmethod=m", Value::Null).await;
    assert_eq!(count(&tokens), 2);
    assert!(!tokens.text.contains(&signed));
    // As Consul's own clients know it.
    let path = "/v1/acl/tokens?authmethod=m&servicename=web";
    let both = rig.root("GET", path, Value::Null).await;
    assert_eq!((both.status, both.text.contains("can only filter by one of")), (500, true));
}

#[tokio::test]
async fn a_method_that_goes_takes_its_rules_and_tokens_along() {
    let rig = guarded(false).await;
    let issuer = Issuer::new();
    rig.method(config(&issuer)).await;
    rig.rule("service", "web", "").await;
    let mut secrets = Vec::new();
    for _ in 0..60 {
        let made = rig.login(&issuer.token(es256(), claims(&rig))).await;
        assert_eq!(made.status, 200, "{}", made.text);
        secrets.push(made.json()["SecretID"].as_str().unwrap().to_owned());
    }
    let gone = rig.root("DELETE", "/v1/acl/auth-method/m", Value::Null).await;
    assert_eq!(gone.status, 200, "{}", gone.text);
    rig.method(config(&issuer)).await;
    for secret in &secrets {
        let own = rig.as_token(secret, "GET", "/v1/acl/token/self", "").await;
        assert_eq!(own.status, 403, "{}", own.text);
    }
    let rules = rig.root("GET", "/v1/acl/binding-rules?authmethod=m", Value::Null).await;
    assert_eq!(rules.json(), json!([]));
    let nobody = rig.login(&issuer.token(es256(), claims(&rig))).await;
    assert_eq!(nobody.status, 403, "{}", nobody.text);
}

#[tokio::test]
async fn what_is_no_method_or_rule_is_refused_with_its_field() {
    let rig = guarded(false).await;
    let pem = Issuer::new().pem();
    let jwt = |config: Value| json!({"Name": "x", "Type": "jwt", "Config": config});
    for (body, status, why) in [
        (jwt(json!({})), 400, "exactly one of 'JWTValidationPubKeys'"),
        (jwt(json!({"JWTValidationPubKeys": [pem], "JWKSURL": "https://a"})), 400, "exactly one"),
        (jwt(json!({"JWTValidationPubKeys": ["x"]})), 400, "Config.JWTValidationPubKeys[0]"),
        (jwt(json!({"JWKSURL": "http://a.example/"})), 400, "Config.JWKSURL"),
        (
            jwt(json!({"JWTValidationPubKeys": [pem], "JWTSupportedAlgs": ["HS256"]})),
            400,
            "unsupported algorithm \"HS256\"",
        ),
        (json!({"Name": "x", "Type": "kubernetes", "Config": {}}), 400, "Config.Host is required"),
        (json!({"Name": "x", "Type": "oidc"}), 501, "does not offer auth methods of type \"oidc\""),
        (json!({"Name": "x", "Type": "no"}), 400, "Type should be one of"),
        (
            json!({"Name": "x", "Type": "jwt", "MaxTokenTTL": "10s",
                   "Config": {"JWTValidationPubKeys": [pem]}}),
            400,
            "MaxTokenTTL is from 1m0s",
        ),
    ] {
        let answer = rig.root("PUT", "/v1/acl/auth-method", body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.text.contains(why), "{body}: {}", answer.text);
    }
    let mapped = json!({"JWTValidationPubKeys": [pem], "ClaimMappings": {"sub": "name"}});
    rig.method(mapped).await;
    let rule = |kind: &str, name: &str, selector: &str| {
        let mut rule = json!({"AuthMethod": "m", "BindType": kind, "BindName": name});
        rule["Selector"] = json!(selector);
        rule
    };
    for (body, why) in [
        (rule("service", "${value.sub}", ""), "unknown variable accessed: value.sub"),
        (rule("service", "a b", ""), "is no name for a service"),
        (rule("service", "web", "serviceaccount.name == x"), "Selector"),
        (rule("templated-policy", "builtin/none", ""), "is no name for a templated-policy"),
        (rule("templated-policy", "builtin/service", ""), "is no name for an identity"),
        (rule("key", "x", ""), "no BindType"),
    ] {
        let answer = rig.root("PUT", "/v1/acl/binding-rule", body.clone()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        assert!(answer.text.contains(why), "{body}: {}", answer.text);
    }
}

/// Answers every request with what `says` makes of its path and body.
async fn other(rig: &Rig, says: impl Fn(&str, &str) -> Value + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    rig.tasks.spawn("another", async move {
        'next: while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            let (head, body) = loop {
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    continue 'next;
                }
                let text = String::from_utf8_lossy(&bytes);
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.to_ascii_lowercase();
                let length =
                    length.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
                if body.len() >= length.unwrap_or(0) {
                    break (head.to_owned(), body.to_owned());
                }
            };
            let said = says(head.split(' ').nth(1).unwrap(), &body).to_string();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}", said.len());
            // Who gave up is not answered.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    at
}

#[tokio::test]
async fn keys_of_a_provider_are_asked_for_once() {
    let rig = guarded(false).await;
    let issuer = Issuer::new();
    let set = json!({"keys": [{"kty": "oct"}, issuer.jwk("k1")]});
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = asked.clone();
    let at = other(&rig, move |_, _| {
        seen.fetch_add(1, Ordering::SeqCst);
        set.clone()
    })
    .await;
    rig.method(json!({"JWKSURL": format!("http://{at}/keys"), "JWTSupportedAlgs": ["ES256"],
                      "ClaimMappings": {"sub": "name"}}))
        .await;
    rig.rule("service", "${value.name}", "").await;
    let mut claims = claims(&rig);
    claims.as_object_mut().unwrap().remove("aud");
    for (id, status) in [("k1", 200), ("k1", 200), ("k2", 200), ("", 200)] {
        let token = issuer.token(json!({"alg": "ES256", "kid": id}), claims.clone());
        let answer = rig.login(&token).await;
        assert_eq!(answer.status, status, "{id}: {}", answer.text);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_openid_provider_names_its_keys() {
    let rig = guarded(false).await;
    let issuer = Issuer::new();
    let keys = json!({"keys": [issuer.jwk("k1")]});
    let own = Arc::new(std::sync::OnceLock::<String>::new());
    let known = own.clone();
    let at = other(&rig, move |path, _| match path {
        "/.well-known/openid-configuration" => {
            let own = known.get().unwrap();
            json!({"issuer": own, "jwks_uri": format!("{own}/keys")})
        }
        _ => keys.clone(),
    })
    .await;
    let url = own.get_or_init(|| format!("http://{at}"));
    rig.method(json!({"OIDCDiscoveryURL": url, "JWTSupportedAlgs": ["ES256"],
                      "BoundAudiences": ["weft"], "ClaimMappings": {"sub": "name"}}))
        .await;
    rig.rule("service", "${value.name}", "").await;
    for (own, status) in [(url.as_str(), 200), ("https://other-tenant", 403), ("", 403)] {
        let mut claims = claims(&rig);
        claims["iss"] = json!(own);
        let token = issuer.token(json!({"alg": "ES256", "kid": "k1"}), claims);
        let answer = rig.login(&token).await;
        assert_eq!(answer.status, status, "{own}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_cluster_says_whose_a_token_is() {
    let rig = guarded(false).await;
    let at = other(&rig, |path, body| match path {
        "/apis/authentication.k8s.io/v1/tokenreviews" => {
            let asked: Value = serde_json::from_str(body).unwrap();
            let user = match asked["spec"]["token"].as_str().unwrap() {
                "pod" => json!({"username": "system:serviceaccount:shop:web", "uid": "u1"}),
                "user" => json!({"username": "alice"}),
                _ => return json!({"status": {"error": "unknown"}}),
            };
            json!({"status": {"authenticated": true, "user": user}})
        }
        _ => json!({"metadata": {"annotations": {
            "consul.hashicorp.com/service-name": path.rsplit('/').next().unwrap().repeat(2)}}}),
    })
    .await;
    let config = json!({"Host": format!("http://{at}"), "CACert": "x", "ServiceAccountJWT": "own"});
    rig.made("/v1/acl/auth-method", json!({"Name": "m", "Type": "kubernetes", "Config": config}))
        .await;
    let rule = "serviceaccount.namespace == shop and serviceaccount.uid == u1";
    rig.rule("service", "${serviceaccount.namespace}-${serviceaccount.name}", rule).await;
    let made = rig.login("pod").await;
    assert_eq!(made.status, 200, "{}", made.text);
    assert_eq!(made.json()["ServiceIdentities"], json!([{"ServiceName": "shop-webweb"}]));
    for (bearer, why) in [("user", "of no service account"), ("x", "does not know the token")] {
        let answer = rig.login(bearer).await;
        assert!(answer.status == 403 && answer.text.contains(why), "{}", answer.text);
    }
}

/// A pod that starts again and again, say, of a method that many use.
#[tokio::test]
async fn one_account_takes_neither_anothers_room_nor_its_worked_out_rights() {
    let rig = guarded(false).await;
    let issuer = Issuer::new();
    let mut config = config(&issuer);
    // What rules see of both is the same.
    config["ClaimMappings"] = json!({"/org/team": "team"});
    rig.method(config).await;
    let reads = json!({"Name": "reads", "Rules": r#"key_prefix "" { policy = "read" }"#});
    let policy = rig.made("/v1/acl/policy", reads.clone()).await;
    rig.rule("policy", "reads", "").await;
    let bearer = |subject: &str| {
        let mut claims = claims(&rig);
        claims["sub"] = json!(subject);
        issuer.token(es256(), claims)
    };
    let first = rig.login(&bearer("db")).await.json();
    let secret = first["SecretID"].as_str().unwrap();
    let rights = || rig.door.acl().resolve(&rig.door, secret).unwrap().table.unwrap();
    let before = rights();
    for _ in 0..256 {
        assert_eq!(rig.login(&bearer("web")).await.status, 200);
    }
    assert!(Arc::ptr_eq(&before, &rights()), "worked out again for others' logins");
    let full = rig.login(&bearer("web")).await;
    assert_eq!(full.status, 429, "{}", full.text);
    assert!(full.text.contains("256 of those for this account"), "{}", full.text);
    let other = rig.login(&bearer("db")).await;
    assert_eq!(other.status, 200, "{}", other.text);
    assert!(!other.text.contains("Identity\""), "{}", other.text);
    let listed = rig.root("GET", "/v1/acl/tokens", Value::Null).await.text;
    assert!(!listed.contains("\"Identity\""), "nobody is shown whose it is");
    // What the rights come from does count.
    let id = policy["ID"].as_str().unwrap();
    let none = json!({"Name": "reads", "Rules": ""});
    rig.made(&format!("/v1/acl/policy/{id}"), none).await;
    assert!(!Arc::ptr_eq(&before, &rights()));
    assert_eq!(rig.as_token(secret, "GET", "/v1/kv/x", "").await.status, 403);
}
