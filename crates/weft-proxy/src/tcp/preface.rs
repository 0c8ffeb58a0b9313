// SPDX-License-Identifier: Apache-2.0
//! Ports that were declared to speak HTTP/2 only, with prior knowledge. Called by `accept`; never
//! looks behind the first bytes.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_model::Protocol;

use super::accept::{last_words, patience};
use super::sniff::{Spoken, sniff_http};
use super::socket::Socket;
use crate::http::serve::serve;
use crate::table::GatewayEntry;
use crate::upstream::pool::Wire;
use crate::worker::{Conn, Worker};

/// An empty SETTINGS frame, as everything begins, and GOAWAY with PROTOCOL_ERROR (RFC 9113 §3.4).
const REFUSAL: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";
/// What a client may still be writing is read, lest a reset overtakes the refusal.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 * 1024;

/// Whether a listener in plain text was declared so.
pub fn is_only(entry: &GatewayEntry) -> bool {
    let sections = &entry.listener.sections;
    let declared = sections.iter().all(|s| s.protocol == Protocol::Http2);
    declared && !sections.is_empty() && entry.tls.is_empty()
}

/// Serves HTTP/2; who begins otherwise is told so, and closed.
pub async fn connection<I>(worker: Rc<Worker>, io: I, conn: Rc<Conn>)
where
    I: Socket + Send + 'static,
{
    let looking = sniff_http(io, patience(&worker, &conn));
    let looked = tokio::select! {
        biased;
        looked = looking => looked,
        // Nothing was asked: a draining proxy does not wait for it.
        () = last_words(&worker) => return,
    };
    match looked {
        Ok((Spoken::Http2, io)) => serve(io, worker, conn, Wire::H2),
        Ok((_, io)) => {
            tracing::debug!(remote = %conn.remote, "a client does not begin as HTTP/2 does");
            // It may be gone already.
            let _ = tokio::time::timeout(LINGER_TIME, Box::pin(refuse(io))).await;
        }
        Err(_) => {}
    }
}

async fn refuse<I: Socket>(mut io: I) -> io::Result<()> {
    io.write_all(REFUSAL).await?;
    io.shutdown().await?;
    let mut sink = tokio::io::sink();
    let mut rest = io.take(LINGER_BYTES);
    tokio::io::copy(&mut rest, &mut sink).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::sniff::Patience;

    #[tokio::test]
    async fn a_wrong_preface_is_told_by_goaway_and_a_clean_end() {
        let (mut client, server) = tokio::io::duplex(64);
        let asks = async move {
            // More than is looked at; the pipe holds 64 bytes.
            client.write_all(&[b'x'; 200]).await.unwrap();
            let mut said = Vec::new();
            client.read_to_end(&mut said).await.unwrap();
            said
        };
        let patience = Duration::from_secs(5);
        let refuses = async {
            let looked = Patience { idle: patience, head: patience, by: None };
            let (spoken, io) = sniff_http(server, looked).await.unwrap();
            assert_eq!(spoken, Spoken::Opaque);
            tokio::time::timeout(patience, refuse(io)).await.unwrap().unwrap();
        };
        let (said, ()) = tokio::join!(asks, refuses);
        assert_eq!(said, REFUSAL);
        // Two frames: lengths, types, the code.
        assert_eq!((said.len(), said[3], said[12], said[25]), (9 + 17, 4, 7, 1));
    }
}
