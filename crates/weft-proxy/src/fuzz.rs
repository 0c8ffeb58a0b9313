// SPDX-License-Identifier: Apache-2.0
//! Doors for the fuzz targets (`fuzz/`) to parsers that nobody outside of this crate calls. Decides
//! nothing; each function says what must hold for any bytes.
#![doc(hidden)]

use weft_xds::NodeInfo;

use crate::capture::dns::message;
use crate::h2::budget::{Budget, Peer};
use crate::h2::frames::Scanner;
use crate::http::grpc_web::Decoder;
use crate::tcp::hello::{self, Hello};
use crate::tcp::proxy_header::{self, Judged};
use crate::tcp::sniff;

/// What a connection's first bytes are taken for.
pub fn sniff(bytes: &[u8]) -> &'static str {
    match sniff::judge(bytes) {
        None => "open",
        Some(sniff::Spoken::Http1) => "http1",
        Some(sniff::Spoken::Http2) => "http2",
        Some(sniff::Spoken::Opaque) => "opaque",
    }
}

/// # Panics
/// More is wanted than there can be, or a name has odd characters.
pub fn client_hello(bytes: &[u8]) {
    match hello::judge(bytes) {
        Hello::More(wanted) => assert!(wanted > bytes.len()),
        Hello::Named(Some(name)) => assert!(!name.contains(['/', '\0', ' ', '@'])),
        Hello::Named(None) | Hello::Wrong(_) => {}
    }
}

/// # Panics
/// More is wanted than there can be.
pub fn proxy_header(bytes: &[u8]) {
    if let Judged::More(wanted) = proxy_header::judge(bytes) {
        assert!(wanted > bytes.len());
    }
}

/// # Panics
/// Frames depend on how their bytes were cut, or an attack goes on for too long.
pub fn h2_frames(cut: usize, bytes: &[u8]) {
    let mut budget = Budget::new(Peer::Client, 0);
    let mut abused = false;
    let mut frames = |cut: usize, budget: &mut Option<&mut Budget>| {
        let mut scanner = Scanner::new(0);
        let mut seen = Vec::new();
        for mut piece in bytes.chunks(cut) {
            while let Some((head, end)) = scanner.next(piece) {
                seen.push((head.kind, head.stream, head.bytes));
                if let Some(budget) = budget {
                    abused |= budget.received(head, || 0).is_err();
                }
                piece = piece.get(end..).unwrap_or_default();
            }
        }
        seen
    };
    let parts = frames(cut.max(1), &mut None);
    let whole = frames(bytes.len().max(1), &mut Some(&mut budget));
    assert_eq!(whole, parts);
    // Settings, pings and resets, and no request between them.
    let bare = whole.iter().all(|(kind, ..)| matches!(kind, 3 | 4 | 6));
    assert!(!bare || abused || whole.len() < 1000, "{} frames for nothing", whole.len());
}

/// # Panics
/// What a browser's base64 says depends on how it was cut, or is more than its bytes can say.
pub fn grpc_web(cut: usize, bytes: &[u8]) {
    let unpack = |cut: usize| {
        let mut decoder = Decoder::default();
        let mut said = Vec::new();
        for piece in bytes.chunks(cut) {
            said.extend_from_slice(&decoder.unpack(piece).ok()?);
        }
        Some((said, decoder.is_whole()))
    };
    let whole = unpack(bytes.len().max(1));
    assert_eq!(whole, unpack(cut.max(1)));
    let most = bytes.len() / 4 * 3;
    assert!(
        whole.is_none_or(
            |(said, whole)| said.len() <= most && whole == bytes.len().is_multiple_of(4)
        )
    );
}

/// # Panics
/// A question and its own failed answer do not fit.
pub fn dns_message(bytes: &[u8]) {
    let _ = (message::id(bytes), message::is_response(bytes));
    let Some(question) = message::question(bytes) else { return };
    if let Some(answer) = message::failure(bytes) {
        assert!(message::is_response(&answer));
        assert!(message::answers(&answer, question));
        assert_eq!(message::id(&answer), message::id(bytes));
    }
}

/// Somebody who may ask for the mesh.
pub fn node() -> NodeInfo {
    let id = "sidecar~shop~web".parse().expect("it has three parts");
    NodeInfo {
        id,
        model_version: weft_model::MODEL_VERSION,
        model_version_oldest: weft_model::features::MODEL_VERSION_OLDEST,
        features: Vec::new(),
        release: "fuzz".into(),
    }
}
