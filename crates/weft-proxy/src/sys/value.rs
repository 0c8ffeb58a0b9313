// SPDX-License-Identifier: Apache-2.0
//! A header's value from bytes: plain ASCII is looked at eight bytes at a time, anything else by
//! the value's own constructor. Called by the codec and by whoever makes values.
#![allow(unsafe_code)]

use bytes::Bytes;
use http::HeaderValue;

use crate::observe::quick;

/// `None` when no header may have it.
pub fn value(bytes: Bytes) -> Option<HeaderValue> {
    if !quick::is_plain(&bytes) {
        return HeaderValue::from_maybe_shared(bytes).ok();
    }
    // SAFETY: space to tilde is what a value may have; the constructor asks for nothing else.
    Some(unsafe { HeaderValue::from_maybe_shared_unchecked(bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_the_constructor_takes() {
        for length in 0..20 {
            for at in 0..length.max(1) {
                for byte in 0..=u8::MAX {
                    let mut text = vec![b'a'; length];
                    if let Some(place) = text.get_mut(at) {
                        *place = byte;
                    }
                    let checked = HeaderValue::from_bytes(&text).ok();
                    assert_eq!(value(Bytes::from(text)), checked, "{byte} at {at} of {length}");
                }
            }
        }
    }
}
