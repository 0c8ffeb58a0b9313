// SPDX-License-Identifier: Apache-2.0
//! The text that SPDY/3 header blocks are compressed against (draft 3, section 2.6.10.1): words
//! with their lengths before them, then a tail without.
//!
//! Used by `headers`; data only.

const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

const TAIL: &str = "1001012012022052063003023033043053063074024054064074084094104114124134144154164\
                    17502504505203 Non-Authoritative Information204 No Content301 Moved Permanently\
                    400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server \
                    Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
                    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/\
                    html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/\
                    plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8\
                    charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary's bytes.
pub(super) fn bytes() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS {
        out.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
}
