// SPDX-License-Identifier: Apache-2.0
//! Both ends of a door: the client that asks for a socket, and the server that makes it in its
//! own namespace for those whom the door's owner allows.
//!
//! One Unix connection carries one exchange, so that a slow connection delays nobody, and a
//! caller that goes away ends what was done for it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::wire::{ASK_BYTES, Ask, Reply, send_reply};
use super::{DoorError, errno, here};
use crate::limits::{DOOR_EXCHANGES_MAX, DOOR_EXCHANGES_PER_CALLER_MAX};
use crate::task::TaskGroup;

/// Longest path of a Unix socket (`sun_path`).
const PATH_BYTES_MAX: usize = 107;
/// Longest that a connection may take, whatever the caller asks.
const CONNECT_MAX: Duration = Duration::from_secs(120);
/// For all of an exchange but the connecting.
const EXCHANGE_MAX: Duration = Duration::from_secs(5);

/// Who asks, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `None` when the process is not to be seen from this PID namespace.
    pub pid: Option<u32>,
    pub uid: u32,
    pub gid: u32,
}

/// How many exchanges each process has open.
#[derive(Clone, Debug, Default)]
struct Open(Arc<Mutex<HashMap<Option<u32>, usize>>>);

/// One of them.
#[derive(Debug)]
struct Turn {
    open: Open,
    pid: Option<u32>,
}

// === the client ===

/// One exchange.
pub(super) async fn ask(path: &Path, ask: Ask) -> io::Result<OwnedFd> {
    let exchange = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(&ask.encode()).await?;
        let mut reply = Reply::default();
        while !stream.async_io(Interest::READABLE, || reply.receive(&stream)).await? {}
        Ok::<_, io::Error>(reply)
    };
    match tokio::time::timeout(patience(&ask), exchange).await {
        Ok(Ok(reply)) => reply.finish(),
        Ok(Err(error)) => Err(unreached(path, &ask, &error)),
        Err(_) => Err(unreached(path, &ask, &Errno::TIMEDOUT.into())),
    }
}

/// The same for a thread that may wait.
pub(super) fn ask_blocking(path: &Path, ask: Ask) -> io::Result<OwnedFd> {
    let exchange = || {
        let mut stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_read_timeout(Some(patience(&ask)))?;
        stream.set_write_timeout(Some(EXCHANGE_MAX))?;
        stream.write_all(&ask.encode())?;
        let mut reply = Reply::default();
        while !reply.receive(&stream)? {}
        Ok::<_, io::Error>(reply)
    };
    exchange().map_err(|error| unreached(path, &ask, &error))?.finish()
}

/// How long a caller waits for the other side.
fn patience(ask: &Ask) -> Duration {
    let connecting = match ask {
        Ask::Connect { timeout, .. } => (*timeout).min(CONNECT_MAX),
        Ask::Listen { .. } | Ask::Udp { .. } | Ask::Datagrams { .. } => Duration::ZERO,
    };
    connecting + EXCHANGE_MAX
}

/// The door itself failed. A number of its own, so that it is not taken for the target's.
fn unreached(path: &Path, ask: &Ask, error: &io::Error) -> io::Error {
    let why = format!("the door {} gives no socket for {ask}: {error}", path.display());
    DoorError { errno: Errno::HOSTUNREACH.raw_os_error(), why }.into_io()
}

// === the server ===

/// Makes a door's socket, for this user only; one that is left of an earlier process is replaced.
///
/// # Errors
/// When it cannot be made; a path too long for a socket is said.
pub fn bind_door(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
        let path = path.display();
        let why = format!("the socket path {path} is longer than {PATH_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidFilename, why));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Makes sockets for those whom `rule` allows, until `tasks` drain. A refusal's sentence reaches
/// the caller as `PermissionDenied`.
pub async fn serve_door<R>(listener: UnixListener, rule: R, tasks: TaskGroup)
where
    R: Fn(&Peer, &Ask) -> Result<(), String> + Send + Sync + 'static,
{
    let (rule, open) = (Arc::new(rule), Open::default());
    let places = Arc::new(Semaphore::new(DOOR_EXCHANGES_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = tasks.draining() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: let others finish first.
                tracing::warn!(%error, "a door could not accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let (rule, open) = (rule.clone(), open.clone());
        tasks.spawn("door exchange", async move {
            if let Err(error) = exchange(stream, &*rule, &open).await {
                tracing::debug!(%error, "an exchange over a door broke");
            }
            drop(place);
        });
    }
}

async fn exchange<R>(mut stream: UnixStream, rule: &R, open: &Open) -> io::Result<()>
where
    R: Fn(&Peer, &Ask) -> Result<(), String>,
{
    let credentials = stream.peer_cred()?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    let peer = Peer { pid, uid: credentials.uid(), gid: credentials.gid() };
    let turn = open.enter(pid);
    let mut bytes = [0; ASK_BYTES];
    let read = tokio::time::timeout(EXCHANGE_MAX, stream.read_exact(&mut bytes)).await;
    read.map_err(|_| io::Error::from(Errno::TIMEDOUT))??;
    let made = match Ask::decode(&bytes) {
        _ if turn.is_none() => {
            let why = format!("this process has {DOOR_EXCHANGES_PER_CALLER_MAX} requests open");
            Err((Errno::AGAIN.raw_os_error(), why))
        }
        None => Err((Errno::PROTO.raw_os_error(), "this is no request of a door".to_owned())),
        Some(ask) => match rule(&peer, &ask) {
            Err(why) => {
                tracing::warn!(pid = ?peer.pid, %ask, why, "a door refused");
                Err((Errno::PERM.raw_os_error(), why))
            }
            Ok(()) => tokio::select! {
                made = make(&ask) => made.map_err(|e| sentence(&ask, &e)),
                () = gone(&stream) => return Ok(()),
            },
        },
    };
    drop(turn);
    stream.async_io(Interest::WRITABLE, || send_reply(&stream, &made)).await
}

async fn make(ask: &Ask) -> io::Result<OwnedFd> {
    Ok(match *ask {
        Ask::Connect { to, timeout } => here::connect(to, timeout.min(CONNECT_MAX)).await?.into(),
        Ask::Listen { at, reuse_port } => here::listen(at, reuse_port)?.into(),
        Ask::Udp { peer } => here::udp(peer)?.into(),
        Ask::Datagrams { at } => here::datagrams(at)?.into(),
    })
}

fn sentence(ask: &Ask, error: &io::Error) -> (i32, String) {
    let number = errno(error).unwrap_or(Errno::IO.raw_os_error());
    let why = match ask {
        Ask::Connect { timeout, .. } if number == Errno::TIMEDOUT.raw_os_error() => {
            format!("{ask} was not made within {timeout:?}")
        }
        _ => format!("{ask} cannot be made: {error}"),
    };
    (number, why)
}

/// Resolves when the caller has closed its end.
async fn gone(stream: &UnixStream) {
    let mut byte = [0];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // An end, an error, or bytes after the request: nobody who keeps to the protocol.
            _ => return,
        }
    }
}

// === impl Open ===

impl Open {
    /// `None` when the caller has as many open as it may.
    fn enter(&self, pid: Option<u32>) -> Option<Turn> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = map.entry(pid).or_default();
        if *count >= DOOR_EXCHANGES_PER_CALLER_MAX {
            return None;
        }
        *count += 1;
        Some(Turn { open: self.clone(), pid })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut map = self.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = map.get_mut(&self.pid) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.pid);
            }
        }
    }
}
