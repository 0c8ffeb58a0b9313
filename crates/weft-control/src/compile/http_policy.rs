// SPDX-License-Identifier: Apache-2.0
//! What HTTPRoute's filters and rules ask for beyond a destination: CORS, copies, sessions. Pure
//! reading of one field each; called by the rules.

use std::sync::Arc;

use weft_kinds::views::gateway::{self as view, RequestMirror, SessionPersistence};
use weft_model::{Cors, Regex, Session, SessionBy, Share, StringMatch};

use super::duration::parse_ms;

/// The Fetch standard lets caches keep a leave this long when nobody says otherwise.
const MAX_AGE_S: u64 = 5;

pub(super) fn cors(cors: Option<&view::Cors>) -> Result<Cors, String> {
    let Some(cors) = cors else { return Err("is missing; say which origins get leave".into()) };
    Ok(Cors {
        origins: cors.allow_origins.iter().map(|o| origin(o)).collect::<Result<_, _>>()?,
        methods: cors.allow_methods.clone(),
        headers: cors.allow_headers.clone(),
        expose: cors.expose_headers.clone(),
        max_age_s: Some(cors.max_age.map_or(MAX_AGE_S, u64::from)),
        credentials: cors.allow_credentials == Some(true),
        forward_unmatched: false,
    })
}

/// An origin as browsers send it: without its scheme's own port.
fn origin(text: &str) -> Result<StringMatch, String> {
    if text == "*" {
        return Ok(StringMatch::Present);
    }
    let plain = match text.split_once("://") {
        Some(("http", host)) => host.strip_suffix(":80").map(|h| format!("http://{h}")),
        Some(("https", host)) => host.strip_suffix(":443").map(|h| format!("https://{h}")),
        _ => None,
    };
    let plain: Arc<str> = plain.map_or_else(|| text.into(), Into::into);
    if plain.contains('*') {
        return Regex::origin(&plain).map(StringMatch::Regex);
    }
    Ok(StringMatch::Exact(plain))
}

pub(super) fn share(mirror: &RequestMirror) -> Share {
    match (&mirror.fraction, mirror.percent) {
        (Some(f), _) => Share::of(f.numerator.into(), f.denominator.unwrap_or(100).into()),
        (None, Some(percent)) => Share::of(percent.into(), 100),
        (None, None) => Share::ALL,
    }
}

/// A session; one that is not named gets a name of its rule's own, made from `rule`.
pub(super) fn session(wanted: &SessionPersistence, rule: &str) -> Result<Session, String> {
    let absolute_s = match wanted.absolute_timeout.as_deref() {
        None => None,
        Some(text) => match parse_ms(text) {
            None => return Err(format!(".absoluteTimeout: {text:?} is no duration such as 1h")),
            Some(0) => None,
            Some(ms) => Some(ms.div_ceil(1_000)),
        },
    };
    if wanted.idle_timeout.is_some() {
        return Err(".idleTimeout is not done by weft; name an absoluteTimeout".into());
    }
    let permanent = match wanted.cookie_config.lifetime_type.as_deref() {
        None | Some("Session") => false,
        Some("Permanent") if absolute_s.is_some() => true,
        Some("Permanent") => {
            return Err(".cookieConfig: a permanent cookie needs an absoluteTimeout".into());
        }
        Some(other) => return Err(format!(".cookieConfig.lifetimeType {other} is unknown")),
    };
    let by = match wanted.kind.as_deref() {
        None | Some("Cookie") => SessionBy::Cookie { permanent },
        Some("Header") => SessionBy::Header,
        Some(other) => return Err(format!(".type {other} is unknown; write Cookie or Header")),
    };
    let name: Arc<str> = match wanted.session_name.as_deref() {
        None | Some("") => format!("weft-session-{:08x}", short(rule)).into(),
        Some(name) if name.bytes().all(is_token) => match by {
            SessionBy::Header => name.to_ascii_lowercase().into(),
            SessionBy::Cookie { .. } => name.into(),
        },
        Some(name) => {
            return Err(format!(".sessionName: {name:?} cannot be the name of a cookie or header"));
        }
    };
    Ok(Session { by, name, absolute_s })
}

/// RFC 9110's `token`.
pub(super) fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Why no message can have such a header (RFC 9110 §5.1, §5.5; what is not ASCII is not sent).
pub(super) fn unsendable(name: &str, value: &str) -> Option<&'static str> {
    let visible = |b: u8| b == b'\t' || (b' '..=b'~').contains(&b);
    match () {
        () if name.is_empty() || !name.bytes().all(is_token) => Some("no header has such a name"),
        () if !value.bytes().all(visible) => Some("no header has such a value"),
        () => None,
    }
}

fn short(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_browsers_send_them() {
        let holds = |pattern: &str, text: &str| origin(pattern).unwrap().holds(text.as_bytes());
        for (pattern, yes, no) in [
            ("https://a.com", "https://a.com", "https://a.com:444"),
            ("https://a.com:443", "https://a.com", "https://a.com:443"),
            ("http://a.com:8080", "http://a.com:8080", "http://a.com"),
            ("https://*.a.com", "https://b.c.a.com", "https://a.com"),
            ("https://*", "https://b.com", "http://b.com"),
            ("*", "null", ""),
        ] {
            assert!(holds(pattern, yes), "{pattern} {yes}");
            assert!(no.is_empty() || !holds(pattern, no), "{pattern} {no}");
        }
    }

    #[test]
    fn sessions_say_what_is_wrong_with_them() {
        let base = SessionPersistence::default();
        let made = session(&base, "a/b").unwrap();
        assert_eq!((made.by, made.absolute_s), (SessionBy::Cookie { permanent: false }, None));
        assert_ne!(made.name, session(&base, "a/c").unwrap().name);
        let text = |t: &str| Some(Arc::<str>::from(t));
        for (wrong, why) in [
            (SessionPersistence { absolute_timeout: text("soon"), ..base.clone() }, "no duration"),
            (SessionPersistence { kind: text("Ip"), ..base.clone() }, "unknown"),
            (
                SessionPersistence { session_name: text("a b"), ..base.clone() },
                "cannot be the name",
            ),
            (SessionPersistence { idle_timeout: text("1s"), ..base.clone() }, "absoluteTimeout"),
            (
                SessionPersistence {
                    cookie_config: view::CookieConfig { lifetime_type: text("Permanent") },
                    ..base.clone()
                },
                "needs an absoluteTimeout",
            ),
        ] {
            let said = session(&wrong, "r").unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        let header = SessionPersistence {
            kind: text("Header"),
            session_name: text("X-S"),
            absolute_timeout: text("1500ms"),
            ..base
        };
        let made = session(&header, "r").unwrap();
        assert_eq!((&*made.name, made.by, made.absolute_s), ("x-s", SessionBy::Header, Some(2)));
    }
}
