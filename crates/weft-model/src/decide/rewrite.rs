// SPDX-License-Identifier: Apache-2.0
//! Rewritten paths and redirect locations.

use super::route::Request;
use crate::{Match, PathMatch, PathRewrite, Redirect, RedirectPort};

/// The path after a rewrite. `matched` tells which prefix is replaced; a prefix rewrite of a
/// request that no prefix matched replaces nothing but `/`.
pub fn rewritten_path(path: &str, rewrite: &PathRewrite, matched: Option<&Match>) -> String {
    match rewrite {
        PathRewrite::Full(p) => p.to_string(),
        PathRewrite::Regex(r) => r.apply(path),
        PathRewrite::Prefix(new) => match matched.and_then(|m| m.path.as_ref()) {
            Some(PathMatch::StringPrefix(old) | PathMatch::StringPrefixNoCase(old)) => {
                format!("{new}{}", path.get(old.len()..).unwrap_or(""))
            }
            Some(PathMatch::Exact(_) | PathMatch::ExactNoCase(_) | PathMatch::Regex(_)) => {
                new.to_string()
            }
            Some(PathMatch::ElementPrefix(old)) => replace_element_prefix(path, old, new),
            None => replace_element_prefix(path, "/", new),
        },
    }
}

/// The `Location` of a redirect (Gateway API `HTTPRequestRedirectFilter`; what Envoy and Istio do
/// differently is said by [`RedirectPort`]).
pub fn redirect_location(
    redirect: &Redirect,
    req: &Request<'_>,
    matched: Option<&Match>,
) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(req.scheme);
    let host = redirect.host.as_deref().unwrap_or(req.host);
    let path = match &redirect.path {
        Some(rewrite) => rewritten_path(req.path, rewrite, matched),
        None => req.path.to_owned(),
    };
    let well_known = |scheme: &str| match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    // A scheme that changes without a port goes to that scheme's own port.
    let port = match (redirect.port, redirect.port_from, &redirect.scheme) {
        (Some(port), ..) => Some(port),
        (None, RedirectPort::Protocol, _) | (None, RedirectPort::Scheme, Some(_)) => {
            well_known(scheme)
        }
        (None, RedirectPort::Written, _) if redirect.host.is_some() => None,
        (None, RedirectPort::Written, _) => {
            let own = |port| scheme != req.scheme && Some(port) == well_known(req.scheme);
            req.written.filter(|port| !own(*port))
        }
        (None, RedirectPort::Request, _) | (None, RedirectPort::Scheme, None) => Some(req.port),
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let port = match port {
        Some(p) if Some(p) != well_known(scheme) => format!(":{p}"),
        _ => String::new(),
    };
    // A path that says a query itself has it in the place of the request's.
    let kept = !req.query.is_empty() && !path.contains('?');
    let query = if kept { format!("?{}", req.query) } else { String::new() };
    format!("{scheme}://{host}{port}{path}{query}")
}

/// Gateway API `ReplacePrefixMatch`: slashes at the seam are neither lost nor doubled, and one at
/// the path's end stays.
fn replace_element_prefix(path: &str, old: &str, new: &str) -> String {
    let old = old.strip_suffix('/').unwrap_or(old);
    let rest = path.get(old.len()..).unwrap_or("");
    let new = new.strip_suffix('/').unwrap_or(new);
    match rest.trim_start_matches('/') {
        // The root itself has a slash that stands for nothing.
        "" if old.is_empty() && !new.is_empty() => new.into(),
        "" if rest.is_empty() && !new.is_empty() => new.into(),
        rest => format!("{new}/{rest}"),
    }
}
