// SPDX-License-Identifier: Apache-2.0
//! One proxy takes the place of another without closing a socket: the newer process asks for the
//! older one's listening sockets at a Unix socket, says when it serves, and the older one finishes
//! what it has and ends. Both accept in between, from the same queues.
//!
//! `weft proxy --handover PATH` does both parts: it first asks whoever answers at PATH, then
//! answers there itself. SIGUSR2 makes a process start its own successor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::process::Command;
use tokio::sync::oneshot;
use weft_base::sockets::bind_door;
use weft_base::task::TaskGroup;
use weft_proxy::handover::Sockets;

/// Descriptors that travel in one message; the system allows a few more.
const AT_ONCE: usize = 128;
/// Sockets that are taken over at most.
const SOCKETS_MAX: usize = 65_536;
/// How long an older process waits for its successor to serve, and a newer one for descriptors.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a message with descriptors, the last one, and a successor's answer begin with.
const MORE: u8 = b'M';
const LAST: u8 = b'L';
const SERVING: u8 = b'S';

// Words of `weft proxy` about it: no doc comment, which would be that of the whole command.
#[derive(Debug, Args)]
pub struct Succession {
    /// Unix socket where a newer process takes this one's listening sockets over; a process that
    /// answers there now is replaced. SIGUSR2 starts such a successor.
    #[arg(long, value_name = "PATH")]
    pub handover: Option<PathBuf>,
    /// Seconds that a process which was replaced has for what is open there: long answers, streams,
    /// tunnels. Then they are cut.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "handover")]
    pub drain_time: u64,
}

/// The older process, which waits to hear that this one serves.
#[derive(Debug)]
pub struct Older(UnixStream);

/// The process that this one started to take its place, while there is one.
#[derive(Clone, Debug, Default)]
pub struct Started(Arc<AtomicU32>);

/// Waits until this process has something to serve.
///
/// # Errors
/// When it has not in time.
pub async fn within(limit: Duration, serves: impl Fn() -> bool) -> Result<()> {
    let began = tokio::time::Instant::now();
    while !serves() {
        if began.elapsed() >= limit {
            return Err(anyhow!(
                "no configuration came within {} s, so the older proxy goes on; see whether its \
                 source answers, then start the newer one again",
                limit.as_secs()
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Asks whoever answers at a path for its sockets. Nobody there is nothing to take over.
///
/// # Errors
/// When somebody answers and does not hand over what it has.
pub fn ask(path: &Path) -> Result<Option<(Older, Vec<OwnedFd>)>> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(e)
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e).with_context(|| format!("cannot ask {}", path.display())),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut all = Vec::new();
    loop {
        let (tag, mut fds) = receive(&stream).context("the older proxy hands nothing over")?;
        all.append(&mut fds);
        if tag == LAST {
            return Ok(Some((Older(stream), all)));
        }
        if tag != MORE || all.len() > SOCKETS_MAX {
            return Err(anyhow!("{} is no proxy that hands over", path.display()));
        }
    }
}

impl Older {
    /// This process serves: the older one may finish what it has. Returns when it has let go of
    /// the path.
    pub fn serving(self) {
        let Self(mut stream) = self;
        use io::{Read as _, Write as _};
        // An older process that died meanwhile has nothing to finish.
        let _ = stream.write_all(&[SERVING]);
        let _ = stream.read(&mut [0]);
    }
}

/// Answers at a path until a successor serves; then `replaced` resolves.
///
/// # Errors
/// When the path cannot be bound.
pub fn offer(
    path: &Path,
    sockets: Arc<Sockets>,
    started: Started,
    tasks: &TaskGroup,
) -> Result<oneshot::Receiver<()>> {
    let listener = bind_door(path).with_context(|| format!("cannot bind {}", path.display()))?;
    let (tell, replaced) = oneshot::channel();
    tasks.spawn("handover", async move {
        let mut tell = Some(tell);
        while let Ok((stream, _)) = listener.accept().await {
            let own = rustix::process::geteuid().as_raw();
            let Ok(peer) = stream.peer_cred() else { continue };
            if peer.uid() != own && peer.uid() != 0 {
                continue;
            }
            match successor(stream, &sockets).await {
                Ok(stream) => {
                    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
                    if let Some(pid) = pid.filter(|pid| started.is(*pid)) {
                        // Before it goes on: then it is the one that may say that it is ready.
                        super::notify::main_process(pid);
                    }
                    if let Some(tell) = tell.take() {
                        // Only a process that ends anyway does not wait for it.
                        let _ = tell.send(());
                    }
                    drop(listener);
                    drop(stream);
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "a successor did not come to serve; all goes on");
                }
            }
        }
    });
    Ok(replaced)
}

/// Hands everything over and waits until the successor serves.
async fn successor(stream: tokio::net::UnixStream, sockets: &Sockets) -> Result<UnixStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let handing = sockets.hand();
    let fds = sockets.copies()?;
    let serving = tokio::task::spawn_blocking(move || {
        use io::Read as _;
        let mut rest = fds.as_slice();
        loop {
            let (now, later) = rest.split_at(rest.len().min(AT_ONCE));
            rest = later;
            send(&stream, if rest.is_empty() { LAST } else { MORE }, now)?;
            if rest.is_empty() {
                break;
            }
        }
        let mut answer = [0];
        let mut stream = stream;
        stream.read_exact(&mut answer)?;
        let served = answer == [SERVING];
        served.then_some(stream).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    });
    let stream = serving.await??;
    handing.succeeded();
    Ok(stream)
}

fn send(to: &UnixStream, tag: u8, fds: &[OwnedFd]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("no room for the descriptors"));
    }
    let bytes = [tag];
    sendmsg(to, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(from: &UnixStream) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut tag = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(from, &mut [IoSliceMut::new(&mut tag)], &mut control, flags)?;
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((tag[0], fds))
}

/// Starts this program again with the same words; the file may be another by now. Who serves is
/// told once the newer one does ([`offer`]).
///
/// # Errors
/// When it cannot be started, or one that was is still under way.
pub fn start_successor(started: &Started, tasks: &TaskGroup) -> Result<()> {
    if let Some(pid) = started.pid() {
        return Err(anyhow!("process {pid} was started to succeed and does not serve yet"));
    }
    #[allow(clippy::disallowed_methods)] // it must be the same program with the same words
    let (own, words) = (std::env::current_exe()?, std::env::args_os().skip(1));
    // A file that was replaced is called so by the system.
    let own = own.to_string_lossy();
    let own = PathBuf::from(own.strip_suffix(" (deleted)").unwrap_or(&own));
    let mut command = Command::new(&own);
    command.args(words);
    super::notify::upgrading();
    let began = start(command, started, tasks);
    if began.is_err() {
        super::notify::not_succeeded();
    }
    began.with_context(|| format!("cannot start {}", own.display()))
}

/// Starts a process and says when it ends, so that none is left behind that nobody asked for.
fn start(mut command: Command, started: &Started, tasks: &TaskGroup) -> Result<()> {
    let mut child = command.spawn()?;
    let pid = child.id().unwrap_or(0);
    started.0.store(pid, Ordering::Relaxed);
    let started = started.clone();
    tasks.spawn("successor", async move {
        match child.wait().await {
            Ok(status) => tracing::warn!(pid, %status, "the successor that was started has ended"),
            Err(error) => tracing::warn!(pid, %error, "a successor's end cannot be waited for"),
        }
        super::notify::not_succeeded();
        started.0.store(0, Ordering::Relaxed);
    });
    Ok(())
}

// === impl Started ===

impl Started {
    fn pid(&self) -> Option<u32> {
        let pid = self.0.load(Ordering::Relaxed);
        (pid != 0).then_some(pid)
    }

    fn is(&self, pid: u32) -> bool {
        self.pid() == Some(pid)
    }
}

#[cfg(test)]
mod tests;
