// SPDX-License-Identifier: Apache-2.0
//! Header values and short texts that a proxy makes for one request: written into memory that
//! earlier ones have left. Called by the phases and their steps; a value behaves like any other.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;

use bytes::BytesMut;
use http::header::{HeaderMap, HeaderValue};

/// Values are cut from chunks of this size: small, since whoever keeps one keeps its chunk.
const CHUNK_BYTES: usize = 4 * 1024;
/// Longest value that is cut from a chunk.
const VALUE_BYTES_MAX: usize = 256;
/// Chunks that wait until their last value is gone.
const CHUNKS_MAX: usize = 32;
/// Texts that wait for their next use, and the longest that does.
const TEXTS_MAX: usize = 256;
const TEXT_BYTES_MAX: usize = 512;
/// Header maps that wait for their next use, and how many headers the largest has room for.
const MAPS_MAX: usize = 256;
const MAP_CAPACITY: usize = 24;
const MAP_CAPACITY_MAX: usize = 96;

thread_local! {
    static CHUNKS: RefCell<Chunks> = RefCell::default();
    static TEXTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static MAPS: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct Chunks {
    current: Option<BytesMut>,
    used: VecDeque<BytesMut>,
}

/// A text of one request; its memory serves the next one's.
#[derive(Default)]
pub struct Text(String);

/// A header value of these bytes; `None` when no header may have it.
pub fn value(bytes: &[u8]) -> Option<HeaderValue> {
    if bytes.len() > VALUE_BYTES_MAX {
        return HeaderValue::from_bytes(bytes).ok();
    }
    let cut = CHUNKS.with_borrow_mut(|chunks| {
        let chunk = chunks.with_room(bytes.len());
        chunk.extend_from_slice(bytes);
        chunk.split().freeze()
    });
    crate::sys::value::value(cut)
}

/// A copy of a text in memory that an earlier one left.
pub fn string(text: &str) -> String {
    let mut made = TEXTS.with_borrow_mut(Vec::pop).unwrap_or_default();
    made.push_str(text);
    made
}

/// Takes the memory of a text back that nobody reads any more.
pub fn keep(text: String) {
    drop(Text(text));
}

/// An empty map with room for a usual message's headers.
pub fn map() -> HeaderMap {
    let kept = MAPS.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| HeaderMap::with_capacity(MAP_CAPACITY))
}

/// Takes a map back that nobody reads any more.
pub fn give_back(mut map: HeaderMap) {
    if !(MAP_CAPACITY..=MAP_CAPACITY_MAX).contains(&map.capacity()) {
        return;
    }
    map.clear();
    MAPS.with_borrow_mut(|maps| {
        if maps.len() < MAPS_MAX {
            maps.push(map);
        }
    });
}

// === impl Chunks ===

impl Chunks {
    fn with_room(&mut self, bytes: usize) -> &mut BytesMut {
        if let Some(full) = self.current.take_if(|chunk| chunk.capacity() < bytes) {
            self.used.push_back(full);
            self.current = self.free();
        }
        self.current.get_or_insert_with(|| BytesMut::with_capacity(CHUNK_BYTES))
    }

    /// The oldest chunk, if nobody uses it any more; otherwise it waits behind the others.
    fn free(&mut self) -> Option<BytesMut> {
        let mut oldest = self.used.pop_front()?;
        if oldest.try_reclaim(CHUNK_BYTES) {
            return Some(oldest);
        }
        if self.used.len() < CHUNKS_MAX {
            self.used.push_back(oldest);
        }
        None
    }
}

// === impl Text ===

impl Text {
    pub fn new() -> Self {
        Self(TEXTS.with_borrow_mut(Vec::pop).unwrap_or_default())
    }

    /// What `write` writes.
    pub fn of(write: impl FnOnce(&mut String)) -> Self {
        let mut text = Self::new();
        write(&mut text.0);
        text
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let mut text = std::mem::take(&mut self.0);
        if text.capacity() == 0 || text.capacity() > TEXT_BYTES_MAX {
            return;
        }
        text.clear();
        // A thread that ends has no use for it.
        let _ = TEXTS.try_with(|texts| {
            let mut texts = texts.borrow_mut();
            if texts.len() < TEXTS_MAX {
                texts.push(text);
            }
        });
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::of(|out| out.push_str(text))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Clone for Text {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_was_written_however_chunks_turn_over() {
        let mut held = VecDeque::new();
        for i in 0..4_000u32 {
            let text = format!("value {i} {}", "x".repeat((i % 90) as usize));
            held.push_back((text.clone(), value(text.as_bytes()).unwrap()));
            // Some live for long, so that chunks come back out of order.
            if i % 3 == 0 || held.len() > 300 {
                let (text, value) = held.pop_front().unwrap();
                assert_eq!(value.as_bytes(), text.as_bytes());
            }
        }
        for (text, value) in held {
            assert_eq!(value.as_bytes(), text.as_bytes());
        }
        assert!(value(b"no\nheader").is_none());
        assert_eq!(value(&[b'y'; 5_000]).unwrap().len(), 5_000);
    }

    #[test]
    fn chunks_are_used_again() {
        drop(value(b"first"));
        let place = |v: &HeaderValue| v.as_bytes().as_ptr() as usize / CHUNK_BYTES;
        let mut places = std::collections::BTreeSet::new();
        for _ in 0..10_000 {
            places.insert(place(&value(&[b'z'; 100]).unwrap()));
        }
        assert!(places.len() <= 6, "{places:?}");
    }

    #[test]
    fn maps_and_texts_come_back_empty() {
        let mut first = map();
        first.insert("a", HeaderValue::from_static("b"));
        give_back(first);
        assert!(map().is_empty());
        let text = Text::of(|out| out.push_str("kept?"));
        assert_eq!(&*text.clone(), "kept?");
        drop(text);
        assert!(Text::new().is_empty());
    }
}
