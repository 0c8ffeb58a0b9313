// SPDX-License-Identifier: Apache-2.0
//! What systemd is told of a proxy: one datagram each (`sd_notify`). Nothing without
//! `NOTIFY_SOCKET`; never waits, and never fails anything. A process that was replaced says nothing
//! more: what it reads or ends is no news of the unit.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether another process speaks for the unit.
static REPLACED: AtomicBool = AtomicBool::new(false);

/// It serves.
pub fn ready() {
    tell("READY=1\nSTATUS=serving\n");
}

/// It serves what it did before: what it read is refused. READY is there because a reload that is
/// never ended keeps the unit in it until systemd's time is over (sd_notify(3)).
pub fn refused() {
    tell("READY=1\nSTATUS=the newest configuration is refused, the one before is served\n");
}

/// Its configuration is being read again; [`ready`] or [`refused`] ends that.
pub fn reloading() {
    begins("reading its configuration");
}

/// A process that shall take its place was started; [`main_process`] or [`not_succeeded`] ends
/// that.
pub fn upgrading() {
    begins("starting a newer process in its place");
}

/// It serves as before: the process that was to take its place did not come to serve.
pub fn not_succeeded() {
    tell("READY=1\nSTATUS=serving; the newer process that was started did not come to serve\n");
}

/// systemd measures a reload from the moment that is told (`Type=notify-reload`).
fn begins(what: &str) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS={what}\n"));
}

/// It takes nothing new and ends.
pub fn stopping() {
    tell("STOPPING=1\nSTATUS=finishing what is open\n");
}

/// Another process serves in its place, from now on.
pub fn main_process(pid: u32) {
    tell(&format!("MAINPID={pid}\nREADY=1\n"));
    replaced();
}

/// This process only finishes what it has.
pub fn replaced() {
    REPLACED.store(true, Ordering::Relaxed);
}

#[allow(clippy::disallowed_methods)] // systemd's own way to say where
fn tell(message: &str) {
    if REPLACED.load(Ordering::Relaxed) {
        return;
    }
    let Some(path) = std::env::var("NOTIFY_SOCKET").ok().filter(|p| !p.is_empty()) else { return };
    let sent = address(&path).and_then(|to| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(message.as_bytes(), &to)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd is not told");
    }
}

/// A path, or a name of the abstract namespace after `@`.
fn address(path: &str) -> std::io::Result<SocketAddr> {
    match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}
