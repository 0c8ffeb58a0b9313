// SPDX-License-Identifier: Apache-2.0
//! Slashes in paths, where a gateway's listener says what becomes of them: before anything is
//! decided, so that routes, policies and backends see the same. Pure; called by the phases and by
//! `weft explain`, of paths that are [canonical](super::normalise::canonical).

use http::header::{CONTENT_TYPE, HeaderMap};
use http::uri::PathAndQuery;
use http::{Request, Uri};
use weft_model::{EscapedSlashes, Slashes};

use super::normalise::merged;
use super::reply::{Cause, Refusal};
use crate::table::Door;
use crate::worker::{Conn, Worker};

/// Makes a request's path what its listener says.
///
/// # Errors
/// As [`settle`].
pub(super) fn request<B>(
    worker: &Worker,
    conn: &Conn,
    request: &mut Request<B>,
) -> Result<Option<String>, Refusal> {
    let Door::Gateway(name) = &conn.door else { return Ok(None) };
    let slashes = worker.edge(name).unwrap_or_default().slashes;
    if slashes.is_default() {
        return Ok(None);
    }
    let settled = settle(slashes, request.uri(), request.headers())?;
    Ok(settled.and_then(|settled| match settled {
        Settled::Passed(uri) => {
            *request.uri_mut() = uri;
            None
        }
        Settled::Moved(to) => Some(to),
    }))
}

/// What becomes of a path that is not passed on as it is.
#[derive(Debug)]
pub enum Settled {
    Passed(Uri),
    /// The client is to ask for this path and query.
    Moved(String),
}

/// What becomes of a path; `None` when it stays.
///
/// # Errors
/// It may not have escaped slashes.
pub fn settle(
    slashes: Slashes,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Option<Settled>, Refusal> {
    let refused = |why: &str| Refusal::new(Cause::BadRequest, why);
    let path = uri.path();
    let escaped = slashes.escaped != EscapedSlashes::Keep && has_escaped(path);
    if escaped && slashes.escaped == EscapedSlashes::Refuse {
        return Err(refused("its path has an escaped slash"));
    }
    let mut made = if escaped { unescaped(path) } else { path.to_owned() };
    if slashes.merge {
        made = merged(&made);
    }
    if made == path {
        return Ok(None);
    }
    if let Some(query) = uri.query() {
        made = format!("{made}?{query}");
    }
    if !(escaped && slashes.escaped == EscapedSlashes::Redirect) {
        let to = PathAndQuery::from_maybe_shared(made);
        let to = to.map_err(|_| refused("its path is none without its escaped slashes"))?;
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(to);
        let uri = Uri::from_parts(parts).map_err(|_| refused("its path is none"))?;
        return Ok(Some(Settled::Passed(uri)));
    }
    // Behind two slashes stands a host.
    if made.starts_with("//") {
        return Err(refused("its path would be a host without its escaped slashes"));
    }
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    if kind.starts_with(b"application/grpc") {
        return Err(refused("its path has an escaped slash, and a call follows no redirect"));
    }
    Ok(Some(Settled::Moved(made)))
}

fn has_escaped(path: &str) -> bool {
    path.as_bytes().windows(3).any(|three| matches!(three, b"%2f" | b"%2F"))
}

fn unescaped(path: &str) -> String {
    path.replace("%2f", "/").replace("%2F", "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(merge: bool, escaped: EscapedSlashes, target: &str) -> String {
        let uri: Uri = target.parse().unwrap();
        match settle(Slashes { merge, escaped }, &uri, &HeaderMap::new()) {
            Ok(None) => "stays".into(),
            Ok(Some(Settled::Passed(uri))) => uri.to_string(),
            Ok(Some(Settled::Moved(to))) => format!("moved {to}"),
            Err(why) => why.detail,
        }
    }

    #[test]
    fn slashes_become_what_a_listener_says() {
        use EscapedSlashes::{Keep, Redirect, Refuse, Unescape};
        for (merge, escaped, target, want) in [
            (false, Keep, "/a//b%2Fc", "stays"),
            (true, Keep, "/a//b%2Fc", "/a/b%2Fc"),
            (true, Keep, "//a///b//?q=//x", "/a/b/?q=//x"),
            (true, Keep, "/a/b?q=//x", "stays"),
            (false, Unescape, "/a%2Fb%2fc?q=%2F", "/a/b/c?q=%2F"),
            (false, Unescape, "/a%2F/b", "/a//b"),
            (true, Unescape, "/a%2F/b", "/a/b"),
            (true, Redirect, "/a%2F/b?q", "moved /a/b?q"),
            // Merged alone it is passed on.
            (true, Redirect, "/a//b", "/a/b"),
            (true, Redirect, "/%2Fevil.example/", "moved /evil.example/"),
            (
                false,
                Redirect,
                "/%2Fevil.example/",
                "its path would be a host without its escaped slashes",
            ),
            (true, Refuse, "/a%2fb", "its path has an escaped slash"),
            (true, Refuse, "/a//b", "/a/b"),
            (true, Unescape, "http://h.example/a//b%2Fc", "http://h.example/a/b/c"),
            (true, Unescape, "*", "stays"),
        ] {
            assert_eq!(made(merge, escaped, target), want, "{target} {merge} {escaped:?}");
        }
    }

    #[test]
    fn a_call_follows_no_redirect() {
        let slashes = Slashes { merge: false, escaped: EscapedSlashes::Redirect };
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/grpc".parse().unwrap())]);
        let why = settle(slashes, &Uri::from_static("/a%2Fb"), &headers).unwrap_err();
        assert!(why.detail.contains("a call follows no redirect"));
    }
}
