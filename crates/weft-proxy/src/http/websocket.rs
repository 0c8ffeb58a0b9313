// SPDX-License-Identifier: Apache-2.0
//! The two headers by which a WebSocket's ends know each other in HTTP/1.1 (RFC 6455 §4), made and
//! checked where HTTP/2, which has none of them, is on the other side. Pure.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderValue;
use weft_base::rng::Rng;

/// A constant of the RFC.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A key as a client makes it: 16 bytes of chance.
pub fn key(rng: &mut Rng) -> HeaderValue {
    let mut bytes = [0u8; 16];
    let (a, b) = bytes.split_at_mut(8);
    a.copy_from_slice(&rng.next_u64().to_be_bytes());
    b.copy_from_slice(&rng.next_u64().to_be_bytes());
    HeaderValue::from_str(&STANDARD.encode(bytes)).expect("base64 is text")
}

/// What a server answers to a key.
pub fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    let bytes = [key.as_bytes(), GUID].concat();
    // SHA-1 secures nothing here; it is what the RFC wants.
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, &bytes);
    HeaderValue::from_str(&STANDARD.encode(sum)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_answered_as_in_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let mut rng = Rng::seeded(1);
        let (a, b) = (self::key(&mut rng), self::key(&mut rng));
        assert!(a != b && a.len() == 24);
    }
}
