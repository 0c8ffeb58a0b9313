// SPDX-License-Identifier: Apache-2.0
//! Real ClientHellos, whole and in pieces, and what only begins like one.

use std::sync::Arc;

use proptest::prelude::*;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncWriteExt as _, duplex};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

/// The first flight of a client that names a server.
fn hello(name: &str) -> Vec<u8> {
    let roots = rustls::RootCertStore::empty();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut out = Vec::new();
    client.write_tls(&mut out).unwrap();
    out
}

async fn judged(bytes: &[u8], pieces: usize) -> (bool, Vec<u8>) {
    let (mut client, near) = duplex(1 << 16);
    let writing = async move {
        for piece in bytes.chunks(pieces) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let ((found, mut io), ()) = tokio::join!(is_sidecar(near, LIMIT), writing);
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    (found, all)
}

#[tokio::test]
async fn a_sidecar_is_told_by_the_name_it_asks_for_and_no_byte_is_lost() {
    for (name, expected) in [
        ("p8080.mesh.weft.internal", true),
        ("p65536.mesh.weft.internal", false),
        ("example.com", false),
        ("192.0.2.1", false),
    ] {
        let bytes = hello(name);
        for pieces in [1, 7, bytes.len()] {
            let (found, all) = judged(&bytes, pieces).await;
            assert_eq!(found, expected, "{name} in pieces of {pieces}");
            assert_eq!(all, bytes);
        }
    }
    // An end in the middle is an end for the app too.
    let bytes = hello("p8080.mesh.weft.internal");
    let half = &bytes[..bytes.len() / 2];
    assert_eq!(judged(half, 9).await, (false, half.to_vec()));
}

proptest! {
    #[test]
    fn what_only_begins_like_tls_passes_as_it_is(
        mut bytes in proptest::collection::vec(any::<u8>(), 1..400),
        pieces in 1usize..64,
    ) {
        bytes[0] = 22;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (found, all) = runtime.block_on(judged(&bytes, pieces));
        prop_assert!(!found);
        prop_assert_eq!(all, bytes);
    }
}
