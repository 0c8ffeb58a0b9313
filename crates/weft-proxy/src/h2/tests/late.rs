// SPDX-License-Identifier: Apache-2.0
//! Frames of honest clients that come too late.

use super::frames::*;
use crate::tests::bed::{Bed, config, gateway};

#[tokio::test]
async fn uploads_that_are_refused_early_are_no_abuse() {
    let bed = Bed::start(config("gateway~shop~web"), None).await;
    bed.apply(1, vec![gateway(None)]).await;
    let mut wire = Wire::open(bed.listener()).await;
    let streams = || (0..100).map(|n| 2 * n + 1);
    wire.send(&streams().flat_map(post).collect::<Vec<_>>()).await;
    for _ in streams() {
        let reset = loop {
            let came = wire.next().await.unwrap();
            if came.kind == RST_STREAM {
                break came;
            }
        };
        assert_eq!(reset.payload, [0; 4], "stream {}", reset.stream);
    }
    // Its client could not know yet.
    for flags in [0, 0, 0, END_STREAM] {
        for id in streams() {
            let sent = wire.send(&frame(DATA, flags, id, &[b'x'; 16_384])).await;
            assert!(sent, "stream {id}");
        }
    }
    wire.send(&frame(PING, 0, 0, &[7; 8])).await;
    assert!(wire.wait(PING, 0).await.is_some(), "the connection is closed");
}
