// SPDX-License-Identifier: Apache-2.0
//! Names of headers from their bytes. Those that most messages have are known by length and
//! letters; of others the library makes one. Pure; called by [`super::head`].

use http::header::{self, HeaderName};

use super::wrong::Wrong;
use crate::http::headers;

/// # Errors
/// No header has such a name.
#[inline]
pub(super) fn name(name: &[u8]) -> Result<HeaderName, Wrong> {
    match known(name) {
        Some(known) => Ok(known),
        None => HeaderName::from_bytes(name).map_err(|_| Wrong::HeaderName),
    }
}

fn known(name: &[u8]) -> Option<HeaderName> {
    macro_rules! one_of {
        ($($text:literal => $known:expr),+ $(,)?) => {{
            $(if is(name, $text) { return Some($known); })+
            None
        }};
    }
    match name.len() {
        4 => one_of!(b"host" => header::HOST, b"date" => header::DATE, b"etag" => header::ETAG,
            b"vary" => header::VARY),
        6 => one_of!(b"accept" => header::ACCEPT, b"cookie" => header::COOKIE,
            b"server" => header::SERVER, b"origin" => header::ORIGIN, b"expect" => header::EXPECT),
        7 => one_of!(b"referer" => header::REFERER, b"expires" => header::EXPIRES),
        8 => one_of!(b"location" => header::LOCATION),
        10 => one_of!(b"user-agent" => header::USER_AGENT, b"connection" => header::CONNECTION,
            b"set-cookie" => header::SET_COOKIE),
        11 => one_of!(b"traceparent" => headers::TRACEPARENT),
        12 => one_of!(b"content-type" => header::CONTENT_TYPE,
            b"x-request-id" => headers::REQUEST_ID),
        13 => one_of!(b"authorization" => header::AUTHORIZATION,
            b"cache-control" => header::CACHE_CONTROL, b"accept-ranges" => header::ACCEPT_RANGES,
            b"last-modified" => header::LAST_MODIFIED, b"if-none-match" => header::IF_NONE_MATCH),
        14 => one_of!(b"content-length" => header::CONTENT_LENGTH),
        15 => one_of!(b"accept-encoding" => header::ACCEPT_ENCODING,
            b"accept-language" => header::ACCEPT_LANGUAGE,
            b"x-forwarded-for" => headers::FORWARDED_FOR),
        16 => one_of!(b"content-encoding" => header::CONTENT_ENCODING),
        17 => one_of!(b"transfer-encoding" => header::TRANSFER_ENCODING,
            b"x-forwarded-proto" => headers::FORWARDED_PROTO),
        _ => None,
    }
}

/// Whether these are the letters, in either case, and the signs of a name in lower case.
#[inline(always)]
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let differ = name.iter().zip(known).fold(0, |differ, (a, b)| {
        // Letters may differ by the bit of their case, which makes no other byte of a letter.
        let case = if b.is_ascii_lowercase() { !0x20 } else { !0 };
        differ | ((a ^ b) & case)
    });
    differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every known name each byte is replaced by every other one.
    #[test]
    fn a_known_name_is_what_the_library_makes_of_it() {
        let known = [
            "host",
            "date",
            "etag",
            "vary",
            "accept",
            "cookie",
            "server",
            "origin",
            "expect",
            "referer",
            "expires",
            "location",
            "user-agent",
            "connection",
            "set-cookie",
            "traceparent",
            "content-type",
            "x-request-id",
            "authorization",
            "cache-control",
            "accept-ranges",
            "last-modified",
            "if-none-match",
            "content-length",
            "accept-encoding",
            "accept-language",
            "x-forwarded-for",
            "content-encoding",
            "transfer-encoding",
            "x-forwarded-proto",
        ];
        for text in known {
            assert!(super::known(text.as_bytes()).is_some(), "{text}");
            for at in 0..text.len() {
                for byte in 0..=u8::MAX {
                    let mut bytes = text.as_bytes().to_vec();
                    bytes[at] = byte;
                    let made = HeaderName::from_bytes(&bytes).ok();
                    assert_eq!(name(&bytes).ok(), made, "{byte} at {at} of {text}");
                }
            }
            let upper = text.to_ascii_uppercase();
            assert_eq!(name(upper.as_bytes()).unwrap(), text);
        }
    }
}
