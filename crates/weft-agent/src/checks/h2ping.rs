// SPDX-License-Identifier: Apache-2.0
//! An HTTP/2 PING: the preface, our settings, one ping, and whatever comes until its echo. Frames
//! are read by hand, since nothing more of HTTP/2 is needed.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const SETTINGS_ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
const PING: u8 = 6;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const WORD: [u8; 8] = *b"weftping";
/// What a peer may send before it echoes; nobody needs more to say hello.
const FRAMES_MAX: usize = 32;
/// The largest frame that a peer may send unasked.
const FRAME_BYTES_MAX: usize = 16_384;

/// Resolves when the peer has echoed.
///
/// # Errors
/// A sentence about what came instead.
pub async fn ping<S>(mut stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |e: std::io::Error| format!("HTTP2 ping failed: {e}");
    let mut hello = PREFACE.to_vec();
    hello.extend(EMPTY_SETTINGS);
    hello.extend([0, 0, 8, PING, 0, 0, 0, 0, 0]);
    hello.extend(WORD);
    stream.write_all(&hello).await.map_err(failed)?;
    let mut settled = false;
    for _ in 0..FRAMES_MAX {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.map_err(failed)?;
        let [a, b, c, kind, flags, ..] = head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if !settled && (kind != SETTINGS || flags & ACK != 0) {
            return Err("HTTP2 ping failed: the peer does not speak HTTP/2".into());
        }
        if length > FRAME_BYTES_MAX {
            return Err(format!("HTTP2 ping failed: a frame of {length} bytes"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.map_err(failed)?;
        match (kind, flags & ACK != 0) {
            (SETTINGS, false) => {
                settled = true;
                stream.write_all(&SETTINGS_ACK).await.map_err(failed)?;
            }
            (PING, true) if body == WORD => return Ok(()),
            (GOAWAY, _) => return Err("HTTP2 ping failed: the peer goes away".into()),
            _ => {}
        }
    }
    Err(format!("HTTP2 ping failed: no echo among {FRAMES_MAX} frames"))
}
