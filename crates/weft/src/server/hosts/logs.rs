// SPDX-License-Identifier: Apache-2.0
//! `kubectl logs` of pods on other machines: the question goes down the host's stream, the output
//! comes back in a call of its own, which ends when nobody reads any more.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_server::k8s::{LogError, LogPieces, LogRequest, PodLogs};
use weft_xds::agent::{HostUpdate, LogAsk, LogPiece, LogWhat, PodRef, Refusal, server};

use super::HostDoor;
use crate::wire;

/// Readers who wait for a host's first word.
const WAITING_MAX: usize = 256;
/// How long they wait.
const FIRST_MAX: Duration = Duration::from_secs(5);

/// Who waits for what, by the number of the question.
#[derive(Debug, Default)]
pub struct Readers {
    last: u64,
    waiting: HashMap<u64, Reader>,
}

#[derive(Debug)]
struct Reader {
    host: String,
    pieces: mpsc::Sender<LogWhat>,
}

/// Logs of this machine's pods, and of the hosts'.
pub struct AllLogs {
    pub own: Arc<dyn PodLogs>,
    pub door: HostDoor,
}

// === impl Readers ===

impl Readers {
    fn add(&mut self, host: &str, pieces: mpsc::Sender<LogWhat>) -> Option<u64> {
        self.waiting.retain(|_, reader| !reader.pieces.is_closed());
        if self.waiting.len() >= WAITING_MAX {
            return None;
        }
        self.last += 1;
        self.waiting.insert(self.last, Reader { host: host.to_owned(), pieces });
        Some(self.last)
    }

    /// The reader of a question that this very host was asked; it is answered once.
    fn take(&mut self, id: u64, host: &str) -> Option<mpsc::Sender<LogWhat>> {
        let theirs = self.waiting.get(&id).is_some_and(|reader| reader.host == host);
        if theirs { self.waiting.remove(&id).map(|reader| reader.pieces) } else { None }
    }
}

// === impl HostDoor ===

impl HostDoor {
    fn readers(&self) -> std::sync::MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open_log(self, host: String, request: LogRequest) -> Result<LogPieces, LogError> {
        let away = || LogError::Unreadable(format!("the agent of host {host} does not answer"));
        let (pieces, mut stream) = mpsc::channel(16);
        let busy = || LogError::Unreadable("too many logs are being opened; try again".into());
        let id = self.readers().add(&host, pieces).ok_or_else(busy)?;
        let ask = LogAsk {
            id,
            pod: PodRef {
                namespace: request.namespace.clone(),
                name: request.pod.clone(),
                uid: request.uid.clone(),
            },
            container: request.container.clone(),
            query: wire::log_query(&request),
        };
        let stream_to_host = self.stream_of(&host).ok_or_else(away)?;
        let update = HostUpdate { logs: vec![ask], ..HostUpdate::default() };
        stream_to_host.try_send(update).map_err(|_| away())?;
        let first = tokio::time::timeout(FIRST_MAX, stream.recv()).await.map_err(|_| away())?;
        let first = match first {
            Some(LogWhat::NotThere(why)) => return Err(LogError::NotThere(why)),
            Some(LogWhat::Failed(why)) => return Err(LogError::Unreadable(why)),
            // An empty one only says that there is such output.
            Some(LogWhat::Data(data)) => Some(Ok(Bytes::from(data))).filter(|d| !is_empty(d)),
            None => None,
        };
        let rest = ReceiverStream::new(stream).map(|what| match what {
            LogWhat::Data(data) => Ok(Bytes::from(data)),
            LogWhat::NotThere(why) | LogWhat::Failed(why) => Err(std::io::Error::other(why)),
        });
        Ok(futures_util::stream::iter(first).chain(rest).boxed())
    }

    /// A host's answer, handed on to who asked.
    ///
    /// # Errors
    /// When it was not asked, or nobody reads any more.
    pub(super) async fn hand_on(
        self,
        host: &str,
        mut pieces: server::LogPieces,
    ) -> Result<(), Refusal> {
        let Some(LogPiece { id, what }) = pieces.next().await else { return Ok(()) };
        let unasked = || Refusal::Denied("nobody asked for this output".into());
        let reader = self.readers().take(id, host).ok_or_else(unasked)?;
        let over = || Refusal::Invalid("nobody reads this output any more".into());
        reader.send(what).await.map_err(|_| over())?;
        loop {
            let piece = tokio::select! {
                piece = pieces.next() => piece,
                () = reader.closed() => return Err(over()),
            };
            let Some(piece) = piece else { return Ok(()) };
            reader.send(piece.what).await.map_err(|_| over())?;
        }
    }
}

fn is_empty(piece: &std::io::Result<Bytes>) -> bool {
    matches!(piece, Ok(bytes) if bytes.is_empty())
}

// === impl AllLogs ===

impl PodLogs for AllLogs {
    fn open(&self, request: LogRequest) -> BoxFuture<'_, Result<LogPieces, LogError>> {
        match self.door.host_of(&request.namespace, &request.pod) {
            Some(host) => self.door.clone().open_log(host, request).boxed(),
            None => self.own.open(request),
        }
    }
}

impl fmt::Debug for AllLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AllLogs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_once_and_of_the_host_that_was_asked() {
        let mut readers = Readers::default();
        let (pieces, _stream) = mpsc::channel(1);
        let id = readers.add("m1", pieces).unwrap();
        assert!(readers.take(id, "m2").is_none(), "another host answers nothing");
        assert!(readers.take(id + 1, "m1").is_none());
        assert!(readers.take(id, "m1").is_some());
        assert!(readers.take(id, "m1").is_none());
    }

    #[test]
    fn readers_who_left_make_room() {
        let mut readers = Readers::default();
        let (pieces, stream) = mpsc::channel(1);
        for _ in 0..WAITING_MAX {
            assert!(readers.add("m1", pieces.clone()).is_some());
        }
        assert!(readers.add("m1", pieces).is_none());
        drop(stream);
        let (pieces, _stream) = mpsc::channel(1);
        assert!(readers.add("m1", pieces).is_some());
    }
}
