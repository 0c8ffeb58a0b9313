// SPDX-License-Identifier: Apache-2.0
//! What a client begins HTTP/2 with (RFC 9113 §3.4): the preface, and its SETTINGS. Until they have
//! come whole nothing is made of what a connection needs. Called by `http/serve.rs`; whether they
//! are right is judged by the h2 crate, which reads them again.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, timeout_at};

use super::budget::SETTINGS_BYTES_MAX;
use super::frames::{PREFACE, SETTINGS, Scanner};
use super::server::Ended;
use crate::overload;
use crate::tcp::prefixed::Prefixed;

/// Room for the preface and usual SETTINGS; there is more when more comes.
const ROOM_BYTES: usize = 64;

/// Waits for the beginning until `by`, or for what cannot be one. What was read comes first out of
/// the stream returned; a client that left meanwhile is known by its end.
///
/// # Errors
/// When it does not come in time, or the stream breaks.
pub async fn begun<I>(mut io: I, by: Instant) -> Result<Prefixed<I>, Ended>
where
    I: AsyncRead + Unpin,
{
    let mut seen = BytesMut::new();
    let beginning = async {
        while !is_begun(&seen) {
            if overload::gives_up(seen.len()) {
                return Err(std::io::ErrorKind::OutOfMemory.into());
            }
            if seen.capacity() == seen.len() {
                seen.reserve(ROOM_BYTES);
            }
            if io.read_buf(&mut seen).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    timeout_at(by, beginning).await.map_err(|_| Ended::NoPreface)??;
    Ok(Prefixed::new(seen.freeze(), io))
}

/// Whether there is nothing to wait for before somebody reads it.
fn is_begun(seen: &[u8]) -> bool {
    let Some(frames) = seen.strip_prefix(PREFACE) else { return !PREFACE.starts_with(seen) };
    let mut scanner = Scanner::new(0);
    let Some((head, end)) = scanner.next(frames) else { return false };
    let have = frames.len() - end;
    let whole = u32::try_from(have).is_ok_and(|have| have >= head.bytes);
    // Longer ones are refused by their head.
    whole || head.kind != SETTINGS || head.bytes > SETTINGS_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;

    use super::super::frames::{HEADERS, PING};
    use super::*;

    fn head(bytes: u32, kind: u8) -> Vec<u8> {
        [&bytes.to_be_bytes()[1..], &[kind, 0, 0, 0, 0, 0]].concat()
    }

    #[test]
    fn settings_must_be_whole_and_what_is_wrong_is_not_waited_for() {
        let settings = |bytes, have| [head(bytes, SETTINGS), vec![0; have]].concat();
        let cases = [
            (vec![], false),
            (settings(0, 0)[..8].to_vec(), false),
            (settings(0, 0), true),
            (settings(12, 11), false),
            (settings(12, 12), true),
            (settings(12, 40), true),
            (settings(1_024, 1_023), false),
            (settings(1_024, 1_024), true),
            (settings(1_025, 0), true),
            (head(8, PING), true),
            (head(100, HEADERS), true),
        ];
        for (frames, begun) in cases {
            let seen = [PREFACE, &frames].concat();
            assert_eq!(is_begun(&seen), begun, "{} bytes behind the preface", frames.len());
        }
        for n in 0..PREFACE.len() {
            assert!(!is_begun(&PREFACE[..n]));
            assert!(is_begun(&[&PREFACE[..n], b"x"].concat()), "wrong from byte {n} on");
        }
    }

    #[tokio::test]
    async fn a_beginning_comes_in_time_or_never() {
        let settings = [PREFACE, &head(120, SETTINGS), &[7; 120], b"more"].concat();
        for cut in [1, 24, 33, 60, 152, 153] {
            let (mut client, server) = tokio::io::duplex(1024);
            let sends = async {
                client.write_all(&settings[..cut]).await.unwrap();
                tokio::task::yield_now().await;
                client.write_all(&settings[cut..]).await.unwrap();
                drop(client);
            };
            let takes = async {
                let by = Instant::now() + Duration::from_secs(60);
                let mut all = Vec::new();
                begun(server, by).await.unwrap().read_to_end(&mut all).await.unwrap();
                assert_eq!(all, settings, "cut behind {cut}");
            };
            tokio::join!(sends, takes);
        }
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(&settings[..152]).await.unwrap();
        let late = begun(server, Instant::now() + Duration::from_millis(5)).await;
        assert!(matches!(late, Err(Ended::NoPreface)), "{late:?}");
    }
}
